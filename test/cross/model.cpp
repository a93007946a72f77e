// A tiny Qwen3, NVFP4 throughout: its logits and three training steps.
#include "model/model.h"

#include <cmath>

#include "check.h"
#include "train/train_step.h"

namespace qn::cross {

namespace {

constexpr ModelConfig kConfig = {
    .H = 32, .L = 2, .Q = 4, .KV = 2, .D = 16, .F = 48, .V = 80, .rope_base = 1e6, .eps = 1e-6f, .tied = true};
constexpr int64_t kTokens = 21;

std::vector<int32_t> token_ids() {
  std::vector<int32_t> ids;
  for (const uint8_t id : bytes(kTokens, 101, 80)) ids.push_back(id);
  return ids;
}

struct Run {
  std::vector<float> logits, losses;
  std::vector<uint8_t> before, after;  // codes and scales
};

std::vector<uint8_t> packed_bytes(Model& model) {
  std::vector<uint8_t> out;
  for (const Parameter& p : model.parameters()) {
    if (p.storage != Storage::kNvfp4) continue;
    const auto *codes = p.codes.as<uint8_t>(), *scales = p.scales.as<uint8_t>();
    out.insert(out.end(), codes, codes + p.count() / 2);
    out.insert(out.end(), scales, scales + p.count() / 16);
  }
  return out;
}

Run run_model(const Cpu& like) {
  const auto device = std::make_shared<Device>(like.pool.threads(), like.isa);
  const Cpu cpu = device->cpu();
  Model model(device, kConfig);
  initialize_model(model, {.seed = 12, .stddev = 0.2f}, cpu);
  const std::vector<int32_t> ids = token_ids();
  Run run;
  run.before = packed_bytes(model);
  const ForwardOutput output = forward(model, {.ids = ids.data(), .T = kTokens, .logits = LogitsWanted::kAll}, cpu);
  run.logits.assign(output.logits.as<float>(), output.logits.as<float>() + output.rows * kConfig.V);
  PackedAdamW optimizer(model, {}, cpu);
  for (int step = 0; step < 3; ++step) {
    const TrainStepArgs args = {.input = {.ids = ids.data(), .T = kTokens}, .labels = ids.data(), .lr = 0.01};
    run.losses.push_back(static_cast<float>(train_step(model, optimizer, args, cpu).loss.mean));
  }
  run.after = packed_bytes(model);
  return run;
}

}  // namespace

void check_model(const Levels& levels) {
  const Run a = run_model(levels.one), b = run_model(levels.portable), c = run_model(levels.three);
  Digest digest;
  digest.add(a.before.data(), static_cast<int64_t>(a.before.size()));
  check_digest(digest.value, 0x3b7aab50a076823c, "initial weights");
  check_close(a.logits, b.logits, 1e-3f, "logits");  // of size 10
  check(std::fabs(a.losses[0] - b.losses[0]) < 1e-4f, "first loss");
  // Later steps may part: a gradient that differs in its last bit can round to another code.
  check(std::fabs(a.losses[2] - b.losses[2]) < 0.05f, "third loss");
  check(a.losses[2] < a.losses[0] && a.before != a.after, "training lowers the loss");
  check_equal(a.logits, c.logits, "logits on three threads");
  check_equal(a.losses, c.losses, "losses on three threads");
  check_equal(a.after, c.after, "trained weights on three threads");
}

}  // namespace qn::cross
