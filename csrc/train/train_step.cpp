#include "train/train_step.h"

#include <cmath>

#include "train/memory_plan.h"

namespace qn {

namespace {

std::shared_ptr<Tape> record_loss(Model& model, const TrainStepArgs& args, LossValue& loss, const Cpu& cpu) {
  std::shared_ptr<Tape> tape = record_forward(model, args.input, cpu);
  loss = tape_cross_entropy(*tape, args.labels, args.shifted, cpu);
  if (loss.tokens == 0) {
    fail(Code::kInvalidArgument, "Expected at least one label other than -100 in the batch but received none");
  }
  if (!std::isfinite(loss.mean)) {
    const std::string module = first_non_finite(*tape, cpu);
    fail_at(module, Code::kNonFiniteGradient, "the loss is %f, first in the output of %s: nothing was updated",
            loss.mean, module.c_str());
  }
  return tape;
}

TrainStepResult run_step(Model& model, PackedAdamW& optimizer, const TrainStepArgs& args, const Cpu& cpu) {
  require_step_memory(model, optimizer, args.input);
  TrainStepResult result;
  std::shared_ptr<Tape> tape = record_loss(model, args, result.loss, cpu);
  if (args.skip_above_loss > 0 && result.loss.mean > args.skip_above_loss) {
    cpu.check_cancelled();
    result.stats = optimizer.skipped_step();
    return result;
  }
  if (args.max_grad_norm > 0 && !optimizer.knows_norm()) {
    const auto pass = optimizer.begin_norm_pass(cpu);
    backward(*tape, nullptr, 1.0f, *pass, cpu);
    pass->finish();
    tape.reset();  // consumed, and its memory is needed
    tape = record_loss(model, args, result.loss, cpu);
  }
  cpu.check_cancelled();
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
