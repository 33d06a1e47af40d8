// The two programs of an inner loop: forward, and the gradient.
#pragma once

#include "recorded.h"
#include "recorded_passes.h"

namespace fastmeta::cuda {

// A loop whose tensors are places.
template <class R>
class Placed {
 public:
  Placed(const InnerLoop<R>& given, bool one_rate) : loop(given) {
    int one = -1;  // that has the one rate
    for (int p = 0; p < given.network.n_parameters; ++p) {
      parameters_[p] = {address_of<const R>(first_parameter + p), given.parameters[p].task_stride};
      rates_[p] = given.rates[p];
      if (!rates_[p].data) continue;
      if (one < 0 || !one_rate) one = p;
      rates_[p].data = address_of<const R>(first_rate + one);
    }
    loop.parameters = parameters_, loop.rates = rates_;
    place(loop.support, Slot::support_x);
    place(loop.query, Slot::query_x);
  }
  Placed(const Placed&) = delete;
  Placed& operator=(const Placed&) = delete;

  InnerLoop<R> loop;

 private:
  static void place(Samples<R>& samples, int first) {
    samples.x = address_of<const R>(first);
    if (samples.y) samples.y = address_of<const R>(first + 1);
    if (samples.labels) samples.labels = address_of<const i64>(first + 2);
    if (samples.weight) samples.weight = address_of<const R>(first + 3);
  }

  Parameter<R> parameters_[max_parameters];
  Rate<R> rates_[max_parameters];
};

// Between operations that bring numbers to different places, and between those that take them away, nobody
// waits.
inline void let_run_on(std::vector<Op>& ops) {
  const auto takes = [](const Op& op) {
    return op.code == Do::Scatter || op.code == Do::ScatterSubtract || op.code == Do::ScatterAdd;
  };
  for (std::size_t i = 0; i + 1 < ops.size(); ++i) {
    const Op& next = ops[i + 1];
    const bool brings = ops[i].code == Do::Gather && next.code == Do::Gather && ops[i].to != next.to;
    if (brings || (takes(ops[i]) && takes(next))) ops[i].meets = 0;
  }
}

template <class R>
class Recordist {
 public:
  using Team = Recorder<R>;

  Recordist(const InnerLoop<R>& given, const Wanted& wanted, i64 most_shared, i64 processors)
      : given_(given), wanted_(wanted), placed_(given, wanted.one_rate),
        most_(most_shared - beside_scratch), processors_(processors) {}

  Program<R> forward() {
    const Plan<Team> plan(placed_.loop, forward_room<Team>(placed_.loop, most_));
    return record(plan, [&](Adaptation<Plan<Team>, RecordedPasses<R>>& adaptation) {
      Addressed fast(wanted_.fast ? first_fast : no_slot, count());
      adaptation.forward(0, {nullptr, address_of<R>(predictions), address_of<R>(loss), fast.list()},
                         address_of<R>(Slot::record));
    });
  }

  Program<R> backward() {
    const Plan<Team> plan(placed_.loop, backward_room<Team>(placed_.loop, wanted_.rates, most_));
    return record(plan, [&](Adaptation<Plan<Team>, RecordedPasses<R>>& adaptation) {
      Addressed of_fast(wanted_.grad_fast ? first_grad_fast : no_slot, count());
      Addressed out(first_out, count()), rates(wanted_.rates ? first_out : no_slot, count());
      const BackwardIn<R> in{nullptr, wanted_.grad_loss ? address_of<R>(grad_loss) : nullptr,
                             wanted_.grad_predictions ? address_of<R>(grad_predictions) : nullptr,
                             of_fast.list()};
      R* all = address_of<R>(sums);
      adaptation.backward(0, in, address_of<R>(Slot::record),
                          {out.list(), rates.list(),
                           wanted_.support_x ? address_of<R>(out_support_x) : nullptr,
                           wanted_.query_x ? address_of<R>(out_query_x) : nullptr},
                          {all, all + plan.theta_size});
    });
  }

 private:
  // A list of addresses, by parameter; none: nullptr.
  class Addressed {
   public:
    Addressed(int first_slot, int n) : given_(first_slot != no_slot) {
      for (int p = 0; p < n && given_; ++p) of_[p] = address_of<R>(first_slot + p);
    }
    R* const* list() const { return given_ ? of_ : nullptr; }

   private:
    bool given_;
    R* of_[max_parameters];
  };

  int count() const { return given_.network.n_parameters; }

  template <class F>
  Program<R> record(const Plan<Team>& plan, F write) {
    Program<R> program;
    program.threads = threads_for(plan, processors_);
    Recording written;
    recording = &written;
    R* scratch = address_of<R>(no_slot);
    RecordedPasses<R>(plan, scratch, Crew{program.threads}).put_pads();
    recording->meet();
    program.run.n_once = int(written.ops.size());
    const Common<R> common{};
    Adaptation<Plan<Team>, RecordedPasses<R>> adaptation(plan, common, scratch,
                                                         Crew{program.threads});
    write(adaptation);
    recording->meet();
    recording = nullptr;
    let_run_on(written.ops);
    fill(program, plan, written);
    return program;
  }

  void fill(Program<R>& program, const Plan<Team>& plan, Recording& written) const {
    Run<R>& run = program.run;
    Known& known = run.known;
    known.n_nodes = plan.n_nodes, known.loss = given_.network.loss;
    for (int l = 0; l < plan.n_nodes; ++l) known.nodes[l] = plan.node(l);
    known.targets_at = int(plan.y_at);
    const i64 targets = targets_of<Team>(given_.network, plan.outputs());
    known.target_row = given_.support.labels ? 1 : int(Team::stride(targets));
    known.coefficient_at = int(plan.coefficient_at), known.curvature_at = int(plan.curvature_at);
    known.loss_at = int(plan.scratch_size);
    if (known.loss == LossKind::Program) {
      known.own_at = int(plan.program_at), known.own_row = int(Team::program_row(given_.network.program));
      program.keep(given_.network.program);
    }
    run.tasks = given_.tasks, run.n_ops = int(written.ops.size());
    run.run_size = plan.theta_size * (1 + (wanted_.rates ? plan.rate_steps : 0));
    for (int slot = 0; slot < n_slots; ++slot)
      run.tensors[slot].task_stride = written.task_stride[slot];
    run.tensors[Slot::record].task_stride = given_.steps * plan.theta_size;
    program.ops = std::move(written.ops);
    program.shared = shared_bytes(plan) + beside_scratch;
    program.together = int(blocks_together(plan, program.threads, program.shared, processors_));
    program.theta_size = plan.theta_size, program.rate_steps = plan.rate_steps;
    program.steps = given_.steps;
    plan.each_piece([&](const Piece& p) {
      program.parts.push_back({plan.per_task(p.parameter) ? no_slot : first_out + p.parameter,
                               first_rate + p.parameter, p.at, p.rows, p.columns,
                               Team::stride(p.columns), p.row_step, p.column_step, p.elements()});
    });
  }

  const InnerLoop<R>& given_;
  Wanted wanted_;
  Placed<R> placed_;
  i64 most_, processors_;
};

}  // namespace fastmeta::cuda
