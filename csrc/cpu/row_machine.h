// Runs a program on rows of W samples, one a lane: forward, and backward to what is given. On dual numbers
// both are differentiated along a direction: of the gradient that is the R-operator. row_machine.cpp has
// the steps.
#pragma once

#include "product.h"
//
#include "../network/numbers.h"

namespace fastmeta::FASTMETA_ISA {

// Knows every step but those that read parameters. wanted: which rows a backward goes through, of those
// that vary; a row that does has readers that do, so that `first` of a step is right for any such choice.
template <class Numbers>
struct RowMachine {
  using Row = typename Numbers::Row;

  const RowProgram& program;
  const unsigned char* wanted;
  Row rows, adjoints;
  Row task_rows, task_adjoints;  // those of the task

  void forward(int i) const;
  // Adds what the adjoint of row i says to those of a, b and c, as far as they are wanted.
  void backward(int i) const;
};

}  // namespace fastmeta::FASTMETA_ISA
