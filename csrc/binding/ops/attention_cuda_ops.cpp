// Attention on device 0 from host arrays, bf16 as Uint16Array:
//   attentionCuda(y, lse | null, q, k, v, mask | null, { B, T, Q, KV, D, starts? })
//   attentionBackwardCuda(dq, dk, dv, dy, y, lse, q, k, v, mask | null, { B, T, Q, KV, D, starts? })
//   attentionDecodeCuda(y, q, kPages, vPages, { T, Q, KV, D, offset, pageTokens, position? })   position: read on the
//   device
//   attentionPagedCuda(y, q, kPages, vPages, { T, Q, KV, D, offset, pageTokens })
//   kvCacheWriteCuda(kPages, vPages, k, v, { T, KV, D, offset, pageTokens, position? })
//   qkNormRopeCacheCuda(q, qInvRms | null, kInvRms | null, kPages, vPages, qRaw, kRaw, v, qW, kW, cosines, sines,
//                       { T, Q, KV, D, offset, pageTokens, position?, eps })
// and for benchmarks, on random data, as microseconds per launch:
//   attentionCudaTime({ B, T, Q, KV, D, starts? }, iterations) → { forward, backward }
//   attentionDecodeCudaTime({ T, Q, KV, D, offset, pageTokens }, iterations) → number
//   attentionPagedCudaTime({ T, Q, KV, D, offset, pageTokens }, iterations) → number
//   kvCacheWriteCudaTime and qkNormRopeCacheCudaTime({ T, Q, KV, D, offset, pageTokens }, iterations) → number
//   attentionCopyCudaTime(bytes, iterations) → number
#include <algorithm>
#include <vector>

#include "binding/ops/attention_dims.h"
#include "binding/ops/cuda_ops.h"
#include "binding/ops/device_pages.h"
#include "core/cuda_timer.h"
#include "ops/kv_cache_write.h"
#include "ops/qk_norm_rope.h"

namespace qn {

namespace {

#if defined(QN_WITH_CUDA)

// AttentionDecodeCuda or AttentionPagedCuda; pages are left to the caller.
template <typename Args>
Args cached_dims(const Napi::Value& dims) {
  const AttentionShape shape = attention_shape(dims);
  Args args = {};
  args.T = shape.T;
  args.Q = shape.Q;
  args.KV = shape.KV;
  args.D = shape.D;
  args.offset = option(dims, "offset");
  args.page_tokens = option(dims, "pageTokens", 1);
  return args;
}

// A typed array's memory and its copy on the device, empty for null. What the device wrote comes back with download().
template <typename T>
struct DeviceArray {
  T* host;
  CudaBuffer buffer;
  explicit DeviceArray(const Napi::Value& value) : host(array_data<T>(value)), buffer(array_bytes(value)) {
    if (buffer.bytes() > 0) buffer.upload(host);
  }
  T* get() const { return buffer.as<T>(); }
  void download() const {
    if (buffer.bytes() > 0) buffer.download(host);
  }
};

void run_forward(const Napi::CallbackInfo& info) {
  const DeviceArray<uint16_t> y(info[0]), q(info[2]), k(info[3]), v(info[4]);
  const DeviceArray<float> lse(info[1]);
  const DeviceArray<uint8_t> mask(info[5]);
  const DeviceArray<int32_t> starts(info[6].As<Napi::Object>().Get("starts"));
  attention_starts(info[6]);
  attention_cuda({y.get(), lse.get(), q.get(), k.get(), v.get(), mask.get(), starts.get(), attention_shape(info[6])},
                 nullptr);
  y.download();
  lse.download();
}

void run_backward(const Napi::CallbackInfo& info) {
  const DeviceArray<uint16_t> dq(info[0]), dk(info[1]), dv(info[2]), dy(info[3]), y(info[4]);
  const DeviceArray<float> lse(info[5]);
  const DeviceArray<uint16_t> q(info[6]), k(info[7]), v(info[8]);
  const DeviceArray<uint8_t> mask(info[9]);
  const DeviceArray<int32_t> starts(info[10].As<Napi::Object>().Get("starts"));
  attention_starts(info[10]);
  const AttentionShape shape = attention_shape(info[10]);
  const CudaBuffer scratch(attention_backward_scratch_bytes(shape));
  AttentionBackwardCuda args = {};
  args.dq = dq.get();
  args.dk = dk.get();
  args.dv = dv.get();
  args.dy = dy.get();
  args.y = y.get();
  args.lse = lse.get();
  args.q = q.get();
  args.k = k.get();
  args.v = v.get();
  args.mask = mask.get();
  args.starts = starts.get();
  args.scratch = scratch.as<float>();
  args.shape = shape;
  attention_backward_cuda(args, nullptr);
  dq.download();
  dk.download();
  dv.download();
}

void run_decode(const Napi::CallbackInfo& info) {
  const DeviceArray<uint16_t> y(info[0]), q(info[1]);
  const DevicePages k(info[2]), v(info[3]);
  const DevicePosition position(info[4]);
  auto args = cached_dims<AttentionDecodeCuda>(info[4]);
  const CudaBuffer scratch(attention_decode_scratch_bytes(args));
  args.y = y.get();
  args.q = q.get();
  args.k_pages = k.get();
  args.v_pages = v.get();
  args.scratch = scratch.as<float>();
  args.position = position.get();
  attention_decode_cuda(args, nullptr);
  y.download();
}

void run_paged(const Napi::CallbackInfo& info) {
  const DeviceArray<uint16_t> y(info[0]), q(info[1]);
  const DevicePages k(info[2]), v(info[3]);
  auto args = cached_dims<AttentionPagedCuda>(info[4]);
  const CudaBuffer scratch(attention_paged_scratch_bytes(args));
  args.y = y.get();
  args.q = q.get();
  args.k_pages = k.get();
  args.v_pages = v.get();
  args.scratch = scratch.as<float>();
  attention_paged_cuda(args, nullptr);
  y.download();
}

void run_cache_write(const Napi::CallbackInfo& info) {
  const DevicePages k_pages(info[0]), v_pages(info[1]);
  const DeviceArray<uint16_t> k(info[2]), v(info[3]);
  const DevicePosition position(info[4]);
  const AttentionShape shape = attention_shape(info[4]);
  kv_cache_write_cuda(slots_of(k_pages, v_pages, info[4], position), k.get(), v.get(), shape.T, shape.KV, shape.D,
                      nullptr);
  k_pages.download(info[0]);
  v_pages.download(info[1]);
}

void run_norm_rope_cache(const Napi::CallbackInfo& info) {
  const DeviceArray<uint16_t> q(info[0]), q_raw(info[5]), k_raw(info[6]), v(info[7]);
  const DeviceArray<float> q_inv_rms(info[1]), k_inv_rms(info[2]);
  const DevicePages k_pages(info[3]), v_pages(info[4]);
  const DeviceArray<float> q_w(info[8]), k_w(info[9]), cosines(info[10]), sines(info[11]);
  const Napi::Value dims = info[12];
  const DevicePosition position(dims);
  QkNormRopeCuda args = {};
  args.q = q.get();
  args.q_inv_rms = q_inv_rms.get();
  args.k_inv_rms = k_inv_rms.get();
  args.q_raw = q_raw.get();
  args.k_raw = k_raw.get();
  args.q_w = q_w.get();
  args.k_w = k_w.get();
  args.cosines = cosines.get();
  args.sines = sines.get();
  const AttentionShape shape = attention_shape(dims);
  args.T = shape.T;
  args.Q = shape.Q;
  args.KV = shape.KV;
  args.D = shape.D;
  args.eps = number(dims.As<Napi::Object>().Get("eps"));
  qk_norm_rope_cache_cuda(args, v.get(), slots_of(k_pages, v_pages, dims, position), nullptr);
  q.download();
  q_inv_rms.download();
  k_inv_rms.download();
  k_pages.download(info[3]);
  v_pages.download(info[4]);
}

struct TimedTensors {
  CudaBuffer y, lse, q, k, v, dy, dq, dk, dv;
};

Napi::Value time_attention(const Napi::CallbackInfo& info) {
  const DeviceArray<int32_t> starts(info[0].As<Napi::Object>().Get("starts"));
  attention_starts(info[0]);
  const AttentionShape shape = attention_shape(info[0]);
  const int64_t iterations = integer(info[1]);
  const int64_t queries = shape.B * shape.T * shape.Q * shape.D, keys = shape.B * shape.T * shape.KV * shape.D;
  const int64_t sets = std::max<int64_t>(1, kColdBytes / (4 * queries + 4 * keys));
  const CudaBuffer scratch(attention_backward_scratch_bytes(shape));
  std::vector<TimedTensors> tensors;
  for (int64_t i = 0; i < sets; ++i) {
    tensors.push_back({CudaBuffer(2 * queries), CudaBuffer(4 * queries / shape.D), random_bf16(queries),
                       random_bf16(keys), random_bf16(keys), random_bf16(queries), CudaBuffer(2 * queries),
                       CudaBuffer(2 * keys), CudaBuffer(2 * keys)});
  }
  const auto forward = [&](int64_t i) {
    const TimedTensors& x = tensors[i % sets];
    attention_cuda({x.y.as<uint16_t>(), x.lse.as<float>(), x.q.as<uint16_t>(), x.k.as<uint16_t>(), x.v.as<uint16_t>(),
                    nullptr, starts.get(), shape},
                   nullptr);
  };
  const auto backward = [&](int64_t i) {
    const TimedTensors& x = tensors[i % sets];
    AttentionBackwardCuda args = {};
    args.dq = x.dq.as<uint16_t>();
    args.dk = x.dk.as<uint16_t>();
    args.dv = x.dv.as<uint16_t>();
    args.dy = x.dy.as<uint16_t>();
    args.y = x.y.as<uint16_t>();
    args.lse = x.lse.as<float>();
    args.q = x.q.as<uint16_t>();
    args.k = x.k.as<uint16_t>();
    args.v = x.v.as<uint16_t>();
    args.starts = starts.get();
    args.scratch = scratch.as<float>();
    args.shape = shape;
    attention_backward_cuda(args, nullptr);
  };
  for (int64_t i = 0; i < sets; ++i) forward(i);  // backward needs every set's y and lse
  Napi::Object times = Napi::Object::New(info.Env());
  times.Set("forward", Napi::Number::New(info.Env(), cuda_microseconds(iterations, forward)));
  times.Set("backward", Napi::Number::New(info.Env(), cuda_microseconds(iterations, backward)));
  return times;
}

// Microseconds of attention over a cache, by attention_decode_cuda or attention_paged_cuda.
template <typename Args, auto scratch_bytes, auto run>
Napi::Value time_cached(const Napi::CallbackInfo& info) {
  auto args = cached_dims<Args>(info[0]);
  const TimedPages pages(args.offset + args.T, args.KV, args.page_tokens, args.D);
  const CudaBuffer q = random_bf16(args.T * args.Q * args.D), y(args.T * args.Q * args.D * 2);
  const CudaBuffer scratch(scratch_bytes(args));
  args.q = q.as<uint16_t>();
  args.y = y.as<uint16_t>();
  args.scratch = scratch.as<float>();
  return Napi::Number::New(info.Env(), cuda_microseconds(integer(info[1]), [&](int64_t i) {
                             args.k_pages = pages.keys(i).get();
                             args.v_pages = pages.values(i).get();
                             run(args, nullptr);
                           }));
}

constexpr auto time_decode = time_cached<AttentionDecodeCuda, attention_decode_scratch_bytes, attention_decode_cuda>;
constexpr auto time_paged = time_cached<AttentionPagedCuda, attention_paged_scratch_bytes, attention_paged_cuda>;

Napi::Value time_cache_write(const Napi::CallbackInfo& info) {
  const auto dims = cached_dims<AttentionPagedCuda>(info[0]);
  const TimedPages pages(dims.offset + dims.T, dims.KV, dims.page_tokens, dims.D);
  const CudaBuffer k = random_bf16(dims.T * dims.KV * dims.D), v = random_bf16(dims.T * dims.KV * dims.D);
  return Napi::Number::New(info.Env(), cuda_microseconds(integer(info[1]), [&](int64_t i) {
                             kv_cache_write_cuda(
                                 {pages.keys(i).get(), pages.values(i).get(), dims.page_tokens, dims.offset, nullptr},
                                 k.as<uint16_t>(), v.as<uint16_t>(), dims.T, dims.KV, dims.D, nullptr);
                           }));
}

Napi::Value time_norm_rope_cache(const Napi::CallbackInfo& info) {
  const auto dims = cached_dims<AttentionPagedCuda>(info[0]);
  const TimedPages pages(dims.offset + dims.T, dims.KV, dims.page_tokens, dims.D);
  const int64_t queries = dims.T * dims.Q * dims.D, keys = dims.T * dims.KV * dims.D;
  const CudaBuffer q_raw = random_bf16(queries), k_raw = random_bf16(keys), v = random_bf16(keys), q(2 * queries);
  const CudaBuffer floats = random_bf16(2 * (dims.D + dims.T * dims.D / 2));  // any values do
  QkNormRopeCuda args = {};
  args.q = q.as<uint16_t>();
  args.q_raw = q_raw.as<uint16_t>();
  args.k_raw = k_raw.as<uint16_t>();
  args.q_w = args.k_w = floats.as<float>();
  args.cosines = args.sines = floats.as<float>() + dims.D;
  args.T = dims.T;
  args.Q = dims.Q;
  args.KV = dims.KV;
  args.D = dims.D;
  args.eps = 1e-6f;
  return Napi::Number::New(info.Env(), cuda_microseconds(integer(info[1]), [&](int64_t i) {
                             qk_norm_rope_cache_cuda(
                                 args, v.as<uint16_t>(),
                                 {pages.keys(i).get(), pages.values(i).get(), dims.page_tokens, dims.offset, nullptr},
                                 nullptr);
                           }));
}

Napi::Value time_copy(const Napi::CallbackInfo& info) {
  const int64_t bytes = integer(info[0]);
  const CudaBuffer from = random_bf16(bytes / 2), to(bytes);
  return Napi::Number::New(info.Env(), cuda_microseconds(integer(info[1]), [&](int64_t) {
                             cuda_copy(to.as<void>(), from.as<void>(), from.bytes());
                           }));
}

#endif

}  // namespace

void register_attention_cuda_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("attentionCuda", Napi::Function::New(env, with_cuda<QN_CUDA_RUN(run_forward)>));
  ops.Set("attentionBackwardCuda", Napi::Function::New(env, with_cuda<QN_CUDA_RUN(run_backward)>));
  ops.Set("attentionDecodeCuda", Napi::Function::New(env, with_cuda<QN_CUDA_RUN(run_decode)>));
  ops.Set("attentionPagedCuda", Napi::Function::New(env, with_cuda<QN_CUDA_RUN(run_paged)>));
  ops.Set("kvCacheWriteCuda", Napi::Function::New(env, with_cuda<QN_CUDA_RUN(run_cache_write)>));
  ops.Set("qkNormRopeCacheCuda", Napi::Function::New(env, with_cuda<QN_CUDA_RUN(run_norm_rope_cache)>));
  ops.Set("attentionCudaTime", Napi::Function::New(env, value_with_cuda<QN_CUDA_VALUE(time_attention)>));
  ops.Set("attentionDecodeCudaTime", Napi::Function::New(env, value_with_cuda<QN_CUDA_VALUE(time_decode)>));
  ops.Set("attentionPagedCudaTime", Napi::Function::New(env, value_with_cuda<QN_CUDA_VALUE(time_paged)>));
  ops.Set("kvCacheWriteCudaTime", Napi::Function::New(env, value_with_cuda<QN_CUDA_VALUE(time_cache_write)>));
  ops.Set("qkNormRopeCacheCudaTime", Napi::Function::New(env, value_with_cuda<QN_CUDA_VALUE(time_norm_rope_cache)>));
  ops.Set("attentionCopyCudaTime", Napi::Function::New(env, value_with_cuda<QN_CUDA_VALUE(time_copy)>));
}

}  // namespace qn
