// Kernels that are compiled at run time, each for one program: the text, and what has come of it.
#pragma once

#include <string>

#include "launch.h"

namespace fastmeta::cuda {

// What a compiler of CUDA C++ that has no headers takes; empty: the program is too long for that.
template <class R>
std::string source_of(const Program<R>& program);

// Makes the program run by machine code that a compiler has made of its source; on the current device.
template <class R>
void use_code(Program<R>& program, const std::string& machine_code, int device);

void launch_code(void* code, const void* arguments, i64 blocks, int threads, i64 shared, void* stream);

}  // namespace fastmeta::cuda
