"""Block sizes and warps of each kernel: by shape and compute capability, apart from the kernels.

`MEASURED` says on which card the numbers of a table were found to be the fastest; where it is None
they were chosen by count (blocks enough to fill the card, registers, shared memory), not measured.
There is no tuning at run time.
"""

from __future__ import annotations
