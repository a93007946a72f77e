#include "train/train_step.h"

#include <cmath>

#include "train/memory_plan.h"

namespace qn {

namespace {

TrainStepResult run_step(Model& model, PackedAdamW& optimizer, const TrainStepArgs& args, const Cpu& cpu) {
  require_step_memory(model, optimizer, args.input);
  TrainStepResult result;
  const std::shared_ptr<Tape> tape = record_forward(model, args.input, cpu);
  result.loss = tape_cross_entropy(*tape, args.labels, args.shifted, cpu);
  if (result.loss.tokens == 0) {
    fail(Code::kInvalidArgument, "Expected at least one label other than -100 in the batch but received none");
  }
  if (!std::isfinite(result.loss.mean)) {
    const std::string module = first_non_finite(*tape, cpu);
    fail_at(module, Code::kNonFiniteGradient, "the loss is %f, first in the output of %s: nothing was updated",
            result.loss.mean, module.c_str());
  }
  cpu.check_cancelled();
  if (args.skip_above_loss > 0 && result.loss.mean > args.skip_above_loss) {
    result.stats = optimizer.skipped_step();
    return result;
  }
  const Cpu uninterrupted{cpu.pool, cpu.isa};  // half a step would be neither the old weights nor the new
  const auto step = optimizer.begin_fused_step(args.lr, args.max_grad_norm, uninterrupted);
  backward(*tape, nullptr, 1.0f, *step, uninterrupted);
  result.stats = step->finish();
  return result;
}

}  // namespace

TrainStepResult train_step(Model& model, PackedAdamW& optimizer, const TrainStepArgs& args, const Cpu& cpu) {
  return in_step(optimizer.step_count() + 1, [&] { return run_step(model, optimizer, args, cpu); });
}

}  // namespace qn
