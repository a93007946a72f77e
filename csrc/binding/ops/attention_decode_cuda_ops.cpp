// One token's attention in one launch, on device 0 from host arrays, bf16 as Uint16Array:
//   attentionDecodeFusedCuda(y, kPages, vPages, q, k, v, qW, kW, cosines, sines,
//                            { Q, KV, D, offset, pageTokens, position?, eps, launches?, stages? })   scratch is kept
//                            between launches, each of which overlaps the one before
//   decodeStepsCuda(y, kPages, vPages, q, k, v, qW, kW, embedding, { Q, KV, D, offset, pageTokens, position, eps, base,
//                   steps })                 position + 1, + 2, … with the same q, k and v, one graph replayed; y of
//                   the last of at least 3 steps
// and for benchmarks, on random data, as microseconds inside a CUDA graph:
//   attentionDecodeFusedCudaTime({ Q, KV, D, offset, pageTokens, stages?, overlap? }, replays) → number
//   attentionDecodeInTurnCudaTime({ Q, KV, D, offset, pageTokens }, replays) → number     the launches it replaces
#include "binding/ops/attention_dims.h"
#include "binding/ops/cuda_ops.h"
#include "binding/ops/device_pages.h"
#include "core/cuda_graph_timer.h"
#include "ops/attention_decode_fused.h"
#include "ops/decode_begin.h"
#include "ops/qk_norm_rope.h"

namespace qn {

namespace {

#if defined(QN_WITH_CUDA)

AttentionDecodeFusedCuda fused_dims(const Napi::Value& dims) {
  const AttentionShape shape = attention_shape(dims);
  AttentionDecodeFusedCuda args = {};
  args.Q = shape.Q;
  args.KV = shape.KV;
  args.D = shape.D;
  args.stages = static_cast<int>(option(dims, "stages"));
  return args;
}

float eps_of(const Napi::Value& dims) { return number(dims.As<Napi::Object>().Get("eps")); }

// Zeros, as the first launch expects them.
CudaBuffer fused_scratch(const AttentionDecodeFusedCuda& args) {
  const std::vector<uint8_t> zeros(static_cast<size_t>(attention_decode_fused_scratch_bytes(args.Q, args.KV, args.D)));
  return on_device(zeros.data(), static_cast<int64_t>(zeros.size()));
}

// The arrays that both test ops begin with, around the pages in arguments 1 and 2.
struct FusedArrays {
  DeviceArray y, q, k, v, q_w, k_w;
  explicit FusedArrays(const Napi::CallbackInfo& info)
      : y(info[0]), q(info[3]), k(info[4]), v(info[5]), q_w(info[6]), k_w(info[7]) {}

  void show(AttentionDecodeFusedCuda& args) const {
    args.y = y.bf16();
    args.q = q.bf16();
    args.k = k.bf16();
    args.v = v.bf16();
    args.q_w = q_w.buffer.as<float>();
    args.k_w = k_w.buffer.as<float>();
  }
};

void run_fused(const Napi::CallbackInfo& info) {
  const FusedArrays arrays(info);
  const DeviceArray cosines(info[8]), sines(info[9]);
  const DevicePages k_pages(info[1]), v_pages(info[2]);
  const Napi::Value dims = info[10];
  const DevicePosition position(dims);
  AttentionDecodeFusedCuda args = fused_dims(dims);
  const CudaBuffer scratch = fused_scratch(args);
  args.slots = slots_of(k_pages, v_pages, dims, position);
  arrays.show(args);
  args.cosines = cosines.buffer.as<float>();
  args.sines = sines.buffer.as<float>();
  args.scratch = scratch.as<void>();
  args.eps = eps_of(dims);
  args.overlap_previous = true;
  for (int64_t i = option(dims, "launches", 1); i > 0; --i) attention_decode_fused_cuda(args, nullptr);
  arrays.y.download();
  k_pages.download(info[1]);
  v_pages.download(info[2]);
}

void run_steps(const Napi::CallbackInfo& info) {
  const FusedArrays arrays(info);
  const DevicePages k_pages(info[1]), v_pages(info[2]);
  const DeviceWeight embedding(weight_view(info[8]));
  const Napi::Value dims = info[9];
  const DevicePosition position(dims);
  const int32_t id = 0;
  const CudaBuffer ids = on_device(&id, sizeof(id)), x(embedding.view.cols * 2);
  AttentionDecodeFusedCuda args = fused_dims(dims);
  const CudaBuffer scratch = fused_scratch(args), cosines(args.D * 2), sines(args.D * 2);
  args.slots = slots_of(k_pages, v_pages, dims, position);
  arrays.show(args);
  args.cosines = cosines.as<float>();
  args.sines = sines.as<float>();
  args.scratch = scratch.as<void>();
  args.eps = eps_of(dims);
  args.overlap_previous = true;
  const double base = dims.As<Napi::Object>().Get("base").As<Napi::Number>().DoubleValue();
  const DecodeBeginCuda begin{position.buffer.as<int32_t>(),
                              cosines.as<float>(),
                              sines.as<float>(),
                              args.D,
                              base,
                              x.as<uint16_t>(),
                              embedding.view,
                              ids.as<int32_t>()};
  // Runs once before it is recorded, and the graph once more to warm up.
  cuda_graph_microseconds(1, option(dims, "steps") - 2, [&](int64_t, CudaStream stream) {
    decode_begin_cuda(begin, stream);
    attention_decode_fused_cuda(args, stream);
  });
  arrays.y.download();
  k_pages.download(info[1]);
  v_pages.download(info[2]);
}

// What both sequences of a benchmark read and write.
struct TimedToken {
  int64_t page_tokens, offset;
  TimedPages pages;
  CudaBuffer q, k, v, y, floats;
  TimedToken(const AttentionDecodeFusedCuda& args, const Napi::Value& dims)
      : page_tokens(option(dims, "pageTokens", 1)),
        offset(option(dims, "offset")),
        pages(offset + 1, args.KV, page_tokens, args.D),
        q(random_bf16(args.Q * args.D)),
        k(random_bf16(args.KV * args.D)),
        v(random_bf16(args.KV * args.D)),
        y(args.Q * args.D * 2),
        floats(random_bf16(4 * args.D)) {}  // any values do
  const float* weight() const { return floats.as<float>(); }
  const float* table(int64_t D) const { return floats.as<float>() + D; }
  KvCacheSlots slots(int64_t i) const {
    return {pages.keys(i).get(), pages.values(i).get(), page_tokens, offset, nullptr};
  }
  // As many as the layers of a model, or enough that no cache level holds their pages.
  int64_t launches() const { return std::clamp<int64_t>(pages.sets(), 36, 256); }
};

Napi::Value time_fused(const Napi::CallbackInfo& info) {
  AttentionDecodeFusedCuda args = fused_dims(info[0]);
  const TimedToken token(args, info[0]);
  const CudaBuffer scratch = fused_scratch(args);
  args.y = token.y.as<uint16_t>();
  args.q = token.q.as<uint16_t>();
  args.k = token.k.as<uint16_t>();
  args.v = token.v.as<uint16_t>();
  args.q_w = args.k_w = token.weight();
  args.cosines = args.sines = token.table(args.D);
  args.scratch = scratch.as<void>();
  args.eps = 1e-6f;
  args.overlap_previous = flag(info[0].As<Napi::Object>().Get("overlap"));
  return Napi::Number::New(
      info.Env(), cuda_graph_microseconds(token.launches(), integer(info[1]), [&](int64_t i, CudaStream stream) {
        args.slots = token.slots(i);
        attention_decode_fused_cuda(args, stream);
      }));
}

Napi::Value time_in_turn(const Napi::CallbackInfo& info) {
  const AttentionDecodeFusedCuda dims = fused_dims(info[0]);
  const TimedToken token(dims, info[0]);
  QkNormRopeCuda rows = {};
  const CudaBuffer q(dims.Q * dims.D * 2);
  rows.q = q.as<uint16_t>();
  rows.q_raw = token.q.as<uint16_t>();
  rows.k_raw = token.k.as<uint16_t>();
  rows.q_w = rows.k_w = token.weight();
  rows.cosines = rows.sines = token.table(dims.D);
  rows.T = 1;
  rows.Q = dims.Q;
  rows.KV = dims.KV;
  rows.D = dims.D;
  rows.eps = 1e-6f;
  AttentionDecodeCuda args{token.y.as<uint16_t>(), rows.q, nullptr, nullptr, nullptr, token.offset, nullptr,
                           token.page_tokens,      1,      dims.Q,  dims.KV, dims.D};
  const CudaBuffer scratch(attention_decode_scratch_bytes(args));
  args.scratch = scratch.as<float>();
  return Napi::Number::New(
      info.Env(), cuda_graph_microseconds(token.launches(), integer(info[1]), [&](int64_t i, CudaStream stream) {
        const KvCacheSlots slots = token.slots(i);
        qk_norm_rope_cache_cuda(rows, token.v.as<uint16_t>(), slots, stream);
        args.k_pages = slots.k_pages;
        args.v_pages = slots.v_pages;
        attention_decode_cuda(args, stream);
      }));
}

#endif

}  // namespace

void register_attention_decode_cuda_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("attentionDecodeFusedCuda", Napi::Function::New(env, with_cuda<QN_CUDA_RUN(run_fused)>));
  ops.Set("decodeStepsCuda", Napi::Function::New(env, with_cuda<QN_CUDA_RUN(run_steps)>));
  ops.Set("attentionDecodeFusedCudaTime", Napi::Function::New(env, value_with_cuda<QN_CUDA_VALUE(time_fused)>));
  ops.Set("attentionDecodeInTurnCudaTime", Napi::Function::New(env, value_with_cuda<QN_CUDA_VALUE(time_in_turn)>));
}

}  // namespace qn
