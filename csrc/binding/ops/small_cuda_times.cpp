// smallCudaTime(name, { T, H, … }, iterations) → microseconds per launch of the CUDA ops of small_cuda_ops.cpp (`name`
// is theirs without "Cuda"), or of a device-to-device `copy` of { bytes }. Tensors hold random values and move through
// half a gibibyte from launch to launch, so that no launch finds its own in a cache.
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "binding/ops/ops.h"
#include "core/cuda_timer.h"
#include "core/status.h"
#include "format/nvfp4.h"
#include "ops/cross_entropy.h"
#include "ops/embedding.h"
#include "ops/qk_norm_rope.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"

namespace qn {

namespace {

#if defined(QN_WITH_CUDA)

// Half of it is the most that one launch may take, so that its tensors never overlap.
constexpr int64_t kPoolBytes = int64_t{1} << 29;
constexpr int64_t kAlignment = 256;
constexpr int64_t kPatternBytes = int64_t{1} << 24;

// Every 16-bit word is a bf16 of ±[0.5, 1) with random mantissa, so every pair is an f32 of that size too (xorshift,
// Marsaglia 2003).
std::vector<uint16_t> random_words(int64_t count) {
  std::vector<uint16_t> words(static_cast<size_t>(count));
  uint32_t state = 2463534242u;
  for (uint16_t& word : words) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    word = static_cast<uint16_t>(0x3f00u | (state >> 24 & 0x7fu) | (state & 0x8000u));
  }
  return words;
}

class Pool {
 public:
  Pool() : memory_(kPoolBytes) {
    CudaBuffer pattern(kPatternBytes);
    pattern.upload(random_words(kPatternBytes / 2).data());
    for (int64_t at = 0; at < kPoolBytes; at += kPatternBytes) {
      cuda_copy(memory_.as<char>() + at, pattern.as<void>(), kPatternBytes);
    }
  }

  float* floats(int64_t count) { return static_cast<float*>(take(count * 4)); }
  uint16_t* halves(int64_t count) { return static_cast<uint16_t*>(take(count * 2)); }
  uint8_t* bytes(int64_t count) { return static_cast<uint8_t*>(take(count)); }

 private:
  void* take(int64_t bytes) {
    const int64_t size = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (size > kPoolBytes / 2) {
      fail(Code::kInvalidArgument, "%lld B are too many to time", static_cast<long long>(size));
    }
    if (next_ + size > kPoolBytes) next_ = 0;
    next_ += size;
    return memory_.as<char>() + next_ - size;
  }

  CudaBuffer memory_;
  int64_t next_ = 0;
};

struct Dims {
  const Napi::Object& object;
  int64_t operator[](const char* name) const { return object.Has(name) ? integer(object.Get(name)) : 1; }
};

CudaBuffer device_ints(int64_t count, int64_t step, int64_t modulus) {
  std::vector<int32_t> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) values[i] = static_cast<int32_t>(i * step % modulus);
  CudaBuffer buffer(count * 4);
  buffer.upload(values.data());
  return buffer;
}

using Launch = std::function<void(const Dims& d, Pool& pool, const int32_t* ints)>;

void launch_rms_norm(const Dims& d, Pool& p, const int32_t*) {
  const int64_t T = d["T"], H = d["H"];
  rms_norm_cuda(p.halves(T * H), p.floats(T), p.halves(T * H), p.floats(H), T, H, 1e-6f, nullptr);
}

void launch_rms_norm_backward(const Dims& d, Pool& p, const int32_t*) {
  RmsNormBackwardCuda args = {};
  args.T = d["T"];
  args.H = d["H"];
  args.dx = p.halves(args.T * args.H);
  args.dy = p.halves(args.T * args.H);
  args.x = p.halves(args.T * args.H);
  args.dw = p.floats(args.H);
  args.w = p.floats(args.H);
  args.inv_rms = p.floats(args.T);
  args.scratch = p.floats(rms_norm_backward_scratch_bytes(args.T, args.H) / 4);
  args.accumulate = d["accumulate"] != 0;
  rms_norm_backward_cuda(args, nullptr);
}

void launch_rope_table(const Dims& d, Pool& p, const int32_t* positions) {
  const int64_t T = d["T"], D = d["D"];
  rope_table_cuda(p.floats(T * D / 2), p.floats(T * D / 2), positions, T, D, 1e6, nullptr);
}

void launch_rope(const Dims& d, Pool& p, const int32_t*) {
  const int64_t T = d["T"], heads = d["heads"], D = d["D"];
  rope_cuda(p.halves(T * heads * D), p.floats(T * D / 2), p.floats(T * D / 2), T, heads, D, false, nullptr);
}

void launch_qk_norm_rope(const Dims& d, Pool& p, const int32_t*) {
  QkNormRopeCuda args = {};
  args.T = d["T"];
  args.Q = d["Q"];
  args.KV = d["KV"];
  args.D = d["D"];
  args.eps = 1e-6f;
  const int64_t queries = args.T * args.Q * args.D, keys = args.T * args.KV * args.D;
  args.q = p.halves(queries);
  args.k = p.halves(keys);
  args.q_raw = p.halves(queries);
  args.k_raw = p.halves(keys);
  args.q_inv_rms = p.floats(args.T * args.Q);
  args.k_inv_rms = p.floats(args.T * args.KV);
  args.q_w = p.floats(args.D);
  args.k_w = p.floats(args.D);
  args.cosines = p.floats(args.T * args.D / 2);
  args.sines = p.floats(args.T * args.D / 2);
  qk_norm_rope_cuda(args, nullptr);
}

void launch_swiglu(const Dims& d, Pool& p, const int32_t*) {
  const int64_t count = d["T"] * d["F"];
  swiglu_cuda(p.halves(count), p.halves(count), p.halves(count), count, nullptr);
}

// In place, as a training step calls it.
void launch_swiglu_backward(const Dims& d, Pool& p, const int32_t*) {
  const int64_t count = d["T"] * d["F"];
  uint16_t *gate = p.halves(count), *up = p.halves(count);
  swiglu_backward_cuda(gate, up, p.halves(count), gate, up, count, nullptr);
}

void launch_embedding(const Dims& d, Pool& p, const int32_t* ids) {
  const int64_t T = d["T"], H = d["H"], V = d["V"];
  WeightView w;
  w.rows = V;
  w.cols = H;
  w.storage = d["packed"] != 0 ? Storage::kNvfp4 : Storage::kBF16;
  if (w.storage == Storage::kNvfp4) {
    w.packed = {p.bytes(V * H / 2), p.bytes(V * H / kBlockSize), 0.25f};
  } else {
    w.dense = p.halves(V * H);
  }
  embedding_cuda(p.halves(T * H), w, ids, T, nullptr);
}

void launch_embedding_backward(const Dims& d, Pool& p, const int32_t* ids) {
  const int64_t T = d["T"], H = d["H"], rows = d["rows"];
  embedding_backward_cuda(p.floats(rows * H), p.halves(T * H), ids, T, H, 0, rows, nullptr);
}

void launch_accumulate(const Dims& d, Pool& p, const int32_t* labels) {
  const int64_t T = d["T"], C = d["C"];
  cross_entropy_accumulate_cuda({p.floats(T), p.floats(T), p.floats(T)}, p.halves(T * C), labels, T, C, 0, nullptr);
}

void launch_gradient(const Dims& d, Pool& p, const int32_t* labels) {
  const int64_t T = d["T"], C = d["C"];
  uint16_t* logits = p.halves(T * C);
  cross_entropy_gradient_cuda(logits, p.floats(T), labels, p.floats(T), T, C, 0, nullptr);
}

void launch_copy(const Dims& d, Pool& p, const int32_t*) {
  const int64_t bytes = d["bytes"];
  uint8_t* to = p.bytes(bytes);
  cuda_copy(to, p.bytes(bytes), bytes);
}

Launch launch_of(const std::string& name) {
  static const std::map<std::string, Launch> launches = {
      {"rmsNorm", launch_rms_norm},
      {"rmsNormBackward", launch_rms_norm_backward},
      {"ropeTable", launch_rope_table},
      {"rope", launch_rope},
      {"qkNormRope", launch_qk_norm_rope},
      {"swiglu", launch_swiglu},
      {"swigluBackward", launch_swiglu_backward},
      {"embedding", launch_embedding},
      {"embeddingBackward", launch_embedding_backward},
      {"crossEntropyAccumulate", launch_accumulate},
      {"crossEntropyGradient", launch_gradient},
      {"copy", launch_copy},
  };
  const auto found = launches.find(name);
  if (found == launches.end()) fail(Code::kInvalidArgument, "There is no CUDA op %s to time", name.c_str());
  return found->second;
}

Napi::Value time_op(const Napi::CallbackInfo& info) {
  const auto object = info[1].As<Napi::Object>();
  const Dims dims{object};
  const Launch launch = launch_of(info[0].As<Napi::String>().Utf8Value());
  // Positions, ids or labels: distinct, below V, spread over the rows where there are many.
  const bool spread = object.Has("V");
  const CudaBuffer ints = device_ints(dims["T"], spread ? 997 : 1, spread ? dims["V"] : int64_t{1} << 30);
  Pool pool;
  return Napi::Number::New(
      info.Env(), cuda_microseconds(integer(info[2]), [&](int64_t) { launch(dims, pool, ints.as<int32_t>()); }));
}

#else
// Without CUDA code require_cuda() has thrown before this.
Napi::Value time_op(const Napi::CallbackInfo& info) { return info.Env().Undefined(); }
#endif

Napi::Value small_cuda_time(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    require_cuda();
    return time_op(info);
  });
}

}  // namespace

void register_small_cuda_times(Napi::Env env, Napi::Object ops) {
  ops.Set("smallCudaTime", Napi::Function::New(env, small_cuda_time));
}

}  // namespace qn
