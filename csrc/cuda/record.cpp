// Programs, made on the host: the recursion is compiled here for a team that writes down.
#include "record.h"

#include "launch.h"

namespace fastmeta::cuda {

template <class R>
Program<R> record_program(const InnerLoop<R>& loop, const Wanted& wanted, bool backward,
                          i64 most_shared, i64 processors) {
  Recordist<R> recordist(loop, wanted, most_shared, processors);
  return backward ? recordist.backward() : recordist.forward();
}

template Program<float> record_program(const InnerLoop<float>&, const Wanted&, bool, i64, i64);
template Program<double> record_program(const InnerLoop<double>&, const Wanted&, bool, i64, i64);

}  // namespace fastmeta::cuda
