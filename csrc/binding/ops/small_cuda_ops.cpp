// The elementwise and row-wise ops on device 0 from host arrays, bf16 as Uint16Array. Arguments are those of
// small_ops.cpp; an array given twice is one array on the device, so that aliasing can be tested.
//   rmsNormCuda(y, invRms | null, x, w, T, H, eps)
//   rmsNormBackwardCuda(dx, dw | null, dy, x, w, invRms, T, H, accumulate)
//   ropeTableCuda(cosines, sines, positions, T, D, base)      ropeCuda(x, cosines, sines, T, heads, D, inverse)
//   qkNormRopeCuda(q, k, qInvRms | null, kInvRms | null, qRaw, kRaw, qW, kW, cosines, sines, T, Q, KV, D, eps)
//   swigluCuda(y, gate, up, count)                            swigluBackwardCuda(dgate, dup, dy, gate, up, count)
//   decodeBeginCuda(x, cosines, sines, position, weight, ids, D, base)
//   embeddingCuda(x, weight, ids, T)                          embeddingBackwardCuda(dw, dx, ids, T, H, rowBegin,
//   rowCount) crossEntropyAccumulateCuda(max, sum, targetLogit, logits, labels, T, C, begin)
//   crossEntropyFinishCuda(lse, max, sum, T)                  crossEntropyGradientCuda(logits, lse, labels, weight, T,
//   C, begin)
#include <map>

#include "binding/ops/ops.h"
#include "core/cuda_device.h"
#include "format/nvfp4.h"
#include "ops/cross_entropy.h"
#include "ops/decode_begin.h"
#include "ops/embedding.h"
#include "ops/qk_norm_rope.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"

namespace qn {

namespace {

#if defined(QN_WITH_CUDA)

bool truthy(const Napi::Value& value) { return value.ToBoolean().Value(); }

// The arrays of a call and their copies on the device.
class DeviceArrays {
 public:
  explicit DeviceArrays(const Napi::CallbackInfo& info) : info_(info) {}

  float* floats(size_t argument) { return array<float>(info_[argument]); }
  uint16_t* halves(size_t argument) { return array<uint16_t>(info_[argument]); }
  int32_t* ints(size_t argument) { return array<int32_t>(info_[argument]); }

  // A view of device memory for a view of host memory.
  WeightView weight(size_t argument) {
    WeightView w = weight_view(info_[argument]);
    const int64_t count = w.rows * w.cols;
    if (w.dense) w.dense = copy(w.dense, count * (w.storage == Storage::kF32 ? 4 : 2));
    for (Nvfp4View* part : {&w.packed, &w.residual}) {
      if (!part->codes) continue;
      part->codes = static_cast<uint8_t*>(copy(part->codes, count / 2));
      part->scales = static_cast<uint8_t*>(copy(part->scales, count / kBlockSize));
    }
    if (w.bnb4.codes) {
      w.bnb4.codes = static_cast<uint8_t*>(copy(w.bnb4.codes, count / 2));
      w.bnb4.absmax = static_cast<float*>(copy(w.bnb4.absmax, count / kBnb4BlockSize * 4));
    }
    return w;
  }

  // Everything back to where it came from, inputs too.
  void download() const {
    for (const auto& [host, buffer] : buffers_) buffer.download(const_cast<void*>(host));
  }

 private:
  template <typename T>
  T* array(const Napi::Value& value) {
    const T* host = array_data<T>(value);
    return host ? static_cast<T*>(copy(host, static_cast<int64_t>(value.As<Napi::TypedArray>().ByteLength())))
                : nullptr;
  }

  void* copy(const void* host, int64_t bytes) {
    if (bytes == 0) return nullptr;
    CudaBuffer& buffer = buffers_[host];
    if (buffer.bytes() == 0) {
      buffer = CudaBuffer(bytes);
      buffer.upload(host);
    }
    return buffer.as<void>();
  }

  const Napi::CallbackInfo& info_;
  std::map<const void*, CudaBuffer> buffers_;
};

void rms_norm(const Napi::CallbackInfo& info, DeviceArrays& at) {
  rms_norm_cuda(at.halves(0), at.floats(1), at.halves(2), at.floats(3), integer(info[4]), integer(info[5]),
                number(info[6]), nullptr);
}

void rms_norm_backward(const Napi::CallbackInfo& info, DeviceArrays& at) {
  RmsNormBackwardCuda args = {};
  args.dx = at.halves(0);
  args.dw = at.floats(1);
  args.dy = at.halves(2);
  args.x = at.halves(3);
  args.w = at.floats(4);
  args.inv_rms = at.floats(5);
  args.T = integer(info[6]);
  args.H = integer(info[7]);
  args.accumulate = truthy(info[8]);
  const CudaBuffer scratch(rms_norm_backward_scratch_bytes(args.T, args.H));
  args.scratch = scratch.as<float>();
  rms_norm_backward_cuda(args, nullptr);
}

void rope_table(const Napi::CallbackInfo& info, DeviceArrays& at) {
  rope_table_cuda(at.floats(0), at.floats(1), at.ints(2), integer(info[3]), integer(info[4]),
                  info[5].As<Napi::Number>().DoubleValue(), nullptr);
}

void rope(const Napi::CallbackInfo& info, DeviceArrays& at) {
  rope_cuda(at.halves(0), at.floats(1), at.floats(2), integer(info[3]), integer(info[4]), integer(info[5]),
            truthy(info[6]), nullptr);
}

void qk_norm_rope(const Napi::CallbackInfo& info, DeviceArrays& at) {
  QkNormRopeCuda args = {};
  args.q = at.halves(0);
  args.k = at.halves(1);
  args.q_inv_rms = at.floats(2);
  args.k_inv_rms = at.floats(3);
  args.q_raw = at.halves(4);
  args.k_raw = at.halves(5);
  args.q_w = at.floats(6);
  args.k_w = at.floats(7);
  args.cosines = at.floats(8);
  args.sines = at.floats(9);
  args.T = integer(info[10]);
  args.Q = integer(info[11]);
  args.KV = integer(info[12]);
  args.D = integer(info[13]);
  args.eps = number(info[14]);
  qk_norm_rope_cuda(args, nullptr);
}

void swiglu(const Napi::CallbackInfo& info, DeviceArrays& at) {
  swiglu_cuda(at.halves(0), at.halves(1), at.halves(2), integer(info[3]), nullptr);
}

void swiglu_backward(const Napi::CallbackInfo& info, DeviceArrays& at) {
  swiglu_backward_cuda(at.halves(0), at.halves(1), at.halves(2), at.halves(3), at.halves(4), integer(info[5]), nullptr);
}

void embedding(const Napi::CallbackInfo& info, DeviceArrays& at) {
  embedding_cuda(at.halves(0), at.weight(1), at.ints(2), integer(info[3]), nullptr);
}

void decode_begin(const Napi::CallbackInfo& info, DeviceArrays& at) {
  decode_begin_cuda({at.ints(3), at.floats(1), at.floats(2), integer(info[6]), info[7].As<Napi::Number>().DoubleValue(),
                     at.halves(0), at.weight(4), at.ints(5)},
                    nullptr);
}

void embedding_backward(const Napi::CallbackInfo& info, DeviceArrays& at) {
  embedding_backward_cuda(at.floats(0), at.halves(1), at.ints(2), integer(info[3]), integer(info[4]), integer(info[5]),
                          integer(info[6]), nullptr);
}

void cross_entropy_accumulate(const Napi::CallbackInfo& info, DeviceArrays& at) {
  cross_entropy_accumulate_cuda({at.floats(0), at.floats(1), at.floats(2)}, at.halves(3), at.ints(4), integer(info[5]),
                                integer(info[6]), integer(info[7]), nullptr);
}

void cross_entropy_finish(const Napi::CallbackInfo& info, DeviceArrays& at) {
  cross_entropy_finish_cuda(at.floats(0), {at.floats(1), at.floats(2), nullptr}, integer(info[3]), nullptr);
}

void cross_entropy_gradient(const Napi::CallbackInfo& info, DeviceArrays& at) {
  cross_entropy_gradient_cuda(at.halves(0), at.floats(1), at.ints(2), at.floats(3), integer(info[4]), integer(info[5]),
                              integer(info[6]), nullptr);
}

template <void (*run)(const Napi::CallbackInfo&, DeviceArrays&)>
void with_cuda(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    require_cuda();
    DeviceArrays arrays(info);
    run(info, arrays);
    arrays.download();
  });
}

#define QN_CUDA_OP(run) with_cuda<run>
#else
void refuse(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [] { require_cuda(); });
}

#define QN_CUDA_OP(run) refuse
#endif

}  // namespace

void register_small_cuda_ops(Napi::Env env, Napi::Object ops) {
  const auto set = [&](const char* name, void (*op)(const Napi::CallbackInfo&)) {
    ops.Set(name, Napi::Function::New(env, op, name));
  };
  set("rmsNormCuda", QN_CUDA_OP(rms_norm));
  set("rmsNormBackwardCuda", QN_CUDA_OP(rms_norm_backward));
  set("ropeTableCuda", QN_CUDA_OP(rope_table));
  set("ropeCuda", QN_CUDA_OP(rope));
  set("qkNormRopeCuda", QN_CUDA_OP(qk_norm_rope));
  set("swigluCuda", QN_CUDA_OP(swiglu));
  set("swigluBackwardCuda", QN_CUDA_OP(swiglu_backward));
  set("embeddingCuda", QN_CUDA_OP(embedding));
  set("decodeBeginCuda", QN_CUDA_OP(decode_begin));
  set("embeddingBackwardCuda", QN_CUDA_OP(embedding_backward));
  set("crossEntropyAccumulateCuda", QN_CUDA_OP(cross_entropy_accumulate));
  set("crossEntropyFinishCuda", QN_CUDA_OP(cross_entropy_finish));
  set("crossEntropyGradientCuda", QN_CUDA_OP(cross_entropy_gradient));
}

}  // namespace qn
