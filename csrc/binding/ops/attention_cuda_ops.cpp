// Attention on device 0 from host arrays, bf16 as Uint16Array:
//   attentionCuda(y, lse | null, q, k, v, mask | null, { B, T, Q, KV, D })
//   attentionBackwardCuda(dq, dk, dv, dy, y, lse, q, k, v, mask | null, { B, T, Q, KV, D })
//   attentionDecodeCuda(y, q, kPages, vPages, { T, Q, KV, D, offset, pageTokens, position? })   position: read on the
//   device
// and for benchmarks, on random data, as microseconds per launch:
//   attentionCudaTime({ B, T, Q, KV, D }, iterations) → { forward, backward }
//   attentionDecodeCudaTime({ T, Q, KV, D, offset, pageTokens }, iterations) → number
//   attentionCopyCudaTime(bytes, iterations) → number
#include <algorithm>
#include <vector>

#include "binding/ops/ops.h"
#include "core/cuda_timer.h"
#include "ops/attention.h"

namespace qn {

namespace {

#if defined(QN_WITH_CUDA)

int64_t dim_of(const Napi::Object& dims, const char* name) { return dims.Has(name) ? integer(dims.Get(name)) : 1; }

AttentionShape shape_of(const Napi::Value& value) {
  const auto dims = value.As<Napi::Object>();
  return {dim_of(dims, "B"), dim_of(dims, "T"), dim_of(dims, "Q"), dim_of(dims, "KV"), dim_of(dims, "D")};
}

// Pages are left to the caller.
AttentionDecodeCuda decode_dims(const Napi::Value& value) {
  const auto dims = value.As<Napi::Object>();
  AttentionDecodeCuda args = {};
  args.T = dim_of(dims, "T");
  args.Q = dim_of(dims, "Q");
  args.KV = dim_of(dims, "KV");
  args.D = dim_of(dims, "D");
  args.offset = dim_of(dims, "offset");
  args.page_tokens = dim_of(dims, "pageTokens");
  return args;
}

int64_t array_bytes(const Napi::Value& value) {
  return value.IsTypedArray() ? static_cast<int64_t>(value.As<Napi::TypedArray>().ByteLength()) : 0;
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
  attention_cuda({y.get(), lse.get(), q.get(), k.get(), v.get(), mask.get(), shape_of(info[6])}, nullptr);
  y.download();
  lse.download();
}

void run_backward(const Napi::CallbackInfo& info) {
  const DeviceArray<uint16_t> dq(info[0]), dk(info[1]), dv(info[2]), dy(info[3]), y(info[4]);
  const DeviceArray<float> lse(info[5]);
  const DeviceArray<uint16_t> q(info[6]), k(info[7]), v(info[8]);
  const DeviceArray<uint8_t> mask(info[9]);
  const AttentionShape shape = shape_of(info[10]);
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
  args.scratch = scratch.as<float>();
  args.shape = shape;
  attention_backward_cuda(args, nullptr);
  dq.download();
  dk.download();
  dv.download();
}

CudaBuffer on_device(const void* data, int64_t bytes) {
  CudaBuffer buffer(bytes);
  if (bytes > 0) buffer.upload(data);
  return buffer;
}

// Pages on the device and the device array of pointers to them.
struct DevicePages {
  std::vector<CudaBuffer> pages;
  CudaBuffer pointers;

  void point() {
    std::vector<const uint16_t*> addresses;
    for (const CudaBuffer& page : pages) addresses.push_back(page.as<uint16_t>());
    pointers = on_device(addresses.data(), static_cast<int64_t>(addresses.size() * sizeof(addresses[0])));
  }
  const uint16_t* const* get() const { return pointers.as<const uint16_t*>(); }
};

DevicePages device_pages(const Napi::Value& value) {
  const auto arrays = value.As<Napi::Array>();
  DevicePages result;
  for (uint32_t i = 0; i < arrays.Length(); ++i) {
    const Napi::Value page = arrays.Get(i);
    result.pages.push_back(on_device(array_data<uint16_t>(page), array_bytes(page)));
  }
  result.point();
  return result;
}

void run_decode(const Napi::CallbackInfo& info) {
  const DeviceArray<uint16_t> y(info[0]), q(info[1]);
  const DevicePages k = device_pages(info[2]), v = device_pages(info[3]);
  const auto dims = info[4].As<Napi::Object>();
  AttentionDecodeCuda args = decode_dims(dims);
  const auto position = static_cast<int32_t>(dims.Has("position") ? integer(dims.Get("position")) : 0);
  const CudaBuffer device_position = on_device(&position, sizeof(position));
  const CudaBuffer scratch(attention_decode_scratch_bytes(args));
  args.y = y.get();
  args.q = q.get();
  args.k_pages = k.get();
  args.v_pages = v.get();
  args.scratch = scratch.as<float>();
  args.position = dims.Has("position") ? device_position.as<int32_t>() : nullptr;
  attention_decode_cuda(args, nullptr);
  y.download();
}

// bf16 values over ±[0.5, 1): signs and seven random bits of mantissa (xorshift, Marsaglia, 2003).
CudaBuffer random_buffer(int64_t values) {
  std::vector<uint16_t> data(static_cast<size_t>(values));
  uint32_t state = 2463534242u + static_cast<uint32_t>(values);
  for (uint16_t& value : data) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    value = static_cast<uint16_t>(0x3f00u | (state >> 24 & 0x7fu) | (state & 0x8000u));
  }
  return on_device(data.data(), values * 2);
}

// More than any device's L2 holds.
constexpr int64_t kColdBytes = int64_t{256} << 20;

struct TimedTensors {
  CudaBuffer y, lse, q, k, v, dy, dq, dk, dv;
};

Napi::Value time_attention(const Napi::CallbackInfo& info) {
  const AttentionShape shape = shape_of(info[0]);
  const int64_t iterations = integer(info[1]);
  const int64_t queries = shape.B * shape.T * shape.Q * shape.D, keys = shape.B * shape.T * shape.KV * shape.D;
  const int64_t sets = std::max<int64_t>(1, kColdBytes / (4 * queries + 4 * keys));
  const CudaBuffer scratch(attention_backward_scratch_bytes(shape));
  std::vector<TimedTensors> tensors;
  for (int64_t i = 0; i < sets; ++i) {
    tensors.push_back({CudaBuffer(2 * queries), CudaBuffer(4 * queries / shape.D), random_buffer(queries),
                       random_buffer(keys), random_buffer(keys), random_buffer(queries), CudaBuffer(2 * queries),
                       CudaBuffer(2 * keys), CudaBuffer(2 * keys)});
  }
  const auto forward = [&](int64_t i) {
    const TimedTensors& x = tensors[i % sets];
    attention_cuda({x.y.as<uint16_t>(), x.lse.as<float>(), x.q.as<uint16_t>(), x.k.as<uint16_t>(), x.v.as<uint16_t>(),
                    nullptr, shape},
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

Napi::Value time_decode(const Napi::CallbackInfo& info) {
  AttentionDecodeCuda args = decode_dims(info[0]);
  const int64_t pages = (args.offset + args.T + args.page_tokens - 1) / args.page_tokens;
  const int64_t page_values = args.KV * args.page_tokens * args.D;
  const int64_t sets = std::max<int64_t>(1, kColdBytes / (4 * pages * page_values));
  const CudaBuffer q = random_buffer(args.T * args.Q * args.D), y(args.T * args.Q * args.D * 2);
  const CudaBuffer scratch(attention_decode_scratch_bytes(args));
  std::vector<DevicePages> keys(static_cast<size_t>(sets)), values(static_cast<size_t>(sets));
  for (int64_t i = 0; i < sets; ++i) {
    for (DevicePages* cache : {&keys[i], &values[i]}) {
      for (int64_t page = 0; page < pages; ++page) cache->pages.push_back(random_buffer(page_values));
      cache->point();
    }
  }
  args.q = q.as<uint16_t>();
  args.y = y.as<uint16_t>();
  args.scratch = scratch.as<float>();
  return Napi::Number::New(info.Env(), cuda_microseconds(integer(info[1]), [&](int64_t i) {
                             args.k_pages = keys[i % sets].get();
                             args.v_pages = values[i % sets].get();
                             attention_decode_cuda(args, nullptr);
                           }));
}

Napi::Value time_copy(const Napi::CallbackInfo& info) {
  const int64_t bytes = integer(info[0]);
  const CudaBuffer from = random_buffer(bytes / 2), to(bytes);
  return Napi::Number::New(info.Env(), cuda_microseconds(integer(info[1]), [&](int64_t) {
                             cuda_copy(to.as<void>(), from.as<void>(), from.bytes());
                           }));
}

#else
// Without CUDA code require_cuda() has thrown before these.
void run_forward(const Napi::CallbackInfo&) {}
void run_backward(const Napi::CallbackInfo&) {}
void run_decode(const Napi::CallbackInfo&) {}
Napi::Value time_attention(const Napi::CallbackInfo& info) { return info.Env().Undefined(); }
Napi::Value time_decode(const Napi::CallbackInfo& info) { return info.Env().Undefined(); }
Napi::Value time_copy(const Napi::CallbackInfo& info) { return info.Env().Undefined(); }
#endif

template <void (*run)(const Napi::CallbackInfo&)>
void with_cuda(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    require_cuda();
    run(info);
  });
}

template <Napi::Value (*run)(const Napi::CallbackInfo&)>
Napi::Value value_with_cuda(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    require_cuda();
    return run(info);
  });
}

}  // namespace

void register_attention_cuda_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("attentionCuda", Napi::Function::New(env, with_cuda<run_forward>));
  ops.Set("attentionBackwardCuda", Napi::Function::New(env, with_cuda<run_backward>));
  ops.Set("attentionDecodeCuda", Napi::Function::New(env, with_cuda<run_decode>));
  ops.Set("attentionCudaTime", Napi::Function::New(env, value_with_cuda<time_attention>));
  ops.Set("attentionDecodeCudaTime", Napi::Function::New(env, value_with_cuda<time_decode>));
  ops.Set("attentionCopyCudaTime", Napi::Function::New(env, value_with_cuda<time_copy>));
}

}  // namespace qn
