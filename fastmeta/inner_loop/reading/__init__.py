"""What a module's forward does, as layers: for kernels, and for one step's autograd at a time."""
