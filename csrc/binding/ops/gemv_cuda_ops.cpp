// Matrix-vector products on device 0 from host arrays, bf16 as Uint16Array (ys: or Float32Array):
//   gemvCuda(ys[], x, weights[], T, { accumulate?, swiglu?, norm?, normEps?, overlap? })
//   gemvBackwardInputCuda(dx, dy, weights[], T, accumulate)
//   gemvBackwardWeightCuda(dw [R, K], squares f64[R], dy [T, R], x [T, K], T) → 7 where a row is not finite, else 0
//   gemvChainCuda(x, weight [K, K], T, count, { norm, normEps?, overlap? })
//                x = norm(x) · wᵀ, count times, in a graph
// and for benchmarks, on random data, as microseconds inside a CUDA graph:
//   gemvCudaTime({ T, K, rows: [N, …], swiglu?, accumulate?, norm?, residual?, overlap?, ringBytes, launches?: at
//   least }, replays)
//   gemvBackwardInputCudaTime({ T, K, rows: [N, …], residual?, ringBytes }, replays)
//   gemvLayersCudaTime({ T, layers, context?, variants }, replays)
// per launch through distinct weights of ringBytes in all, and per token of Qwen3-4B's projections, with decode
// attention where there is a context (T 1), for each of the variants { qkv?, attention?, o?, gateUp?, down?, head? }:
// whether that launch overlaps the one before it.
#include <algorithm>
#include <vector>

#include "binding/ops/cuda_ops.h"
#include "binding/ops/device_pages.h"
#include "core/cuda_graph_timer.h"
#include "ops/attention_decode_fused.h"
#include "ops/gemv.h"
#include "ops/gemv_backward_input.h"
#include "ops/gemv_backward_weight.h"

namespace qn {

namespace {

#if defined(QN_WITH_CUDA)

Napi::Value member(const Napi::Value& options, const char* name) {
  return options.IsObject() ? options.As<Napi::Object>().Get(name) : options;
}

float norm_eps(const Napi::Value& options) {
  const Napi::Value eps = member(options, "normEps");
  return eps.IsNumber() ? number(eps) : 1e-6f;
}

void run_gemv(const Napi::CallbackInfo& info) {
  const auto outputs = info[0].As<Napi::Array>(), weights = info[2].As<Napi::Array>();
  const DeviceArray x(info[1]);
  const Napi::Value options = info[4];
  std::vector<DeviceArray> ys;
  std::vector<DeviceWeight> ws;
  for (uint32_t i = 0; i < outputs.Length(); ++i) ys.emplace_back(outputs.Get(i));
  for (uint32_t i = 0; i < weights.Length(); ++i) ws.emplace_back(weight_view(weights.Get(i)));
  GemvCudaArgs args{};
  args.matrix_count = static_cast<int>(ws.size());
  for (size_t i = 0; i < ws.size(); ++i) {
    args.matrices[i].N = ws[i].view.rows;
    args.matrices[i].w = ws[i].view.packed;
    args.matrices[i].residual = ws[i].view.residual;
    if (i < ys.size()) args.matrices[i].y = ys[i].buffer.as<void>();
  }
  args.x = x.bf16();
  args.T = integer(info[3]);
  args.K = ws[0].view.cols;
  args.y_type = ys[0].type;
  args.accumulate = flag(member(options, "accumulate"));
  args.swiglu = flag(member(options, "swiglu"));
  args.overlap_previous = flag(member(options, "overlap"));
  CudaBuffer norm;
  if (member(options, "norm").IsTypedArray()) {
    norm = on_device(array_data<float>(member(options, "norm")), args.K * 4);
    args.norm = norm.as<float>();
    args.norm_eps = norm_eps(options);
  }
  gemv_nvfp4_cuda(args, nullptr);
  for (const DeviceArray& y : ys) y.download();
}

// dy[T, Σ N_i]: columns of the first weight, then of the next.
void take_columns(GemvBackwardInputCuda& args, const uint16_t* dy) {
  int64_t rows = 0;
  for (int i = 0; i < args.weight_count; ++i) {
    args.dy[i] = dy + rows;
    rows += args.weights[i].rows;
  }
  for (int i = 0; i < args.weight_count; ++i) args.dy_strides[i] = rows;
}

void run_backward_input(const Napi::CallbackInfo& info) {
  const DeviceArray dx(info[0]), dy(info[1]);
  const auto weights = info[2].As<Napi::Array>();
  std::vector<DeviceWeight> ws;
  std::vector<WeightView> views;
  for (uint32_t i = 0; i < weights.Length(); ++i) views.push_back(ws.emplace_back(weight_view(weights.Get(i))).view);
  const auto count = static_cast<int>(views.size());
  const int64_t T = integer(info[3]);
  const CudaBuffer scratch(gemv_backward_input_scratch_bytes(views.data(), count, T));
  GemvBackwardInputCuda args{.dx = dx.bf16(), .weights = views.data(), .weight_count = count, .T = T};
  take_columns(args, dy.bf16());
  args.scratch = scratch.as<void>();
  args.accumulate = flag(info[4]);
  gemv_backward_input_cuda(args, nullptr);
  dx.download();
}

Napi::Value run_backward_weight(const Napi::CallbackInfo& info) {
  const DeviceArray dw(info[0]), dy(info[2]), x(info[3]);
  auto squares = info[1].As<Napi::Float64Array>();
  const CudaBuffer device_squares(static_cast<int64_t>(squares.ByteLength()));
  uint32_t stopped = 0;
  const CudaBuffer stop = on_device(&stopped, sizeof stopped);
  GemvBackwardWeightCuda args{.dw = dw.bf16(), .squares = device_squares.as<double>()};
  args.dy = dy.bf16();
  args.x = x.bf16();
  args.T = integer(info[4]);
  args.R = args.dy_stride = static_cast<int64_t>(squares.ElementLength());
  args.K = static_cast<int64_t>(info[0].As<Napi::TypedArray>().ElementLength()) / args.R;
  args.stop = {stop.as<uint32_t>(), 7};
  gemv_backward_weight_cuda(args, nullptr);
  dw.download();
  device_squares.download(squares.Data());
  stop.download(&stopped);
  return Napi::Number::New(info.Env(), stopped);
}

void run_chain(const Napi::CallbackInfo& info) {
  const DeviceArray x(info[0]);
  const DeviceWeight w(weight_view(info[1]));
  const int64_t T = integer(info[2]), count = integer(info[3]), K = w.view.cols;
  const Napi::Value options = info[4];
  const CudaBuffer norm = on_device(array_data<float>(member(options, "norm")), K * 4), other(T * K * 2);
  GemvCudaArgs args{};
  args.T = T;
  args.K = K;
  args.matrices[0].N = K;
  args.matrices[0].w = w.view.packed;
  args.norm = norm.as<float>();
  args.norm_eps = norm_eps(options);
  args.overlap_previous = flag(member(options, "overlap"));
  // The graph runs once more to warm up, and launch 0 alone before it: an even count leaves the result in x.
  int64_t calls = 0;
  uint16_t* const buffers[2] = {x.bf16(), other.as<uint16_t>()};
  cuda_graph_microseconds(count, 1, [&](int64_t, CudaStream stream) {
    if (calls++ == 0) return;
    args.x = buffers[(calls - 2) % 2];
    args.matrices[0].y = buffers[(calls - 1) % 2];
    gemv_nvfp4_cuda(args, stream);
  });
  x.download();
}

// `count` distinct random weights w[N, K] on the device.
struct WeightRing {
  int64_t N, K;
  CudaBuffer codes, scales;

  WeightRing(int64_t rows, int64_t cols, int64_t count)
      : N(rows),
        K(cols),
        codes(random_bytes(count * rows * cols / 2, 0, 256)),
        scales(random_bytes(count * rows * cols / 16, 0x28, 0x15)) {}
  // Rows [begin, …) of the i-th.
  Nvfp4View at(int64_t i, int64_t begin) const {
    const int64_t from = (i * N + begin) * K;
    return {codes.as<uint8_t>() + from / 2, scales.as<uint8_t>() + from / 16, 1e-2f};
  }
};

CudaBuffer ones(int64_t count) {
  const std::vector<float> values(static_cast<size_t>(count), 1.0f);
  return on_device(values.data(), count * 4);
}

// Several weights' rows in each of `count` rings' places, and as many residuals after them.
struct StackRing {
  std::vector<int64_t> begins{0};  // first read by N, so before it
  int64_t T, K, N;
  bool residual;
  int64_t count;
  WeightRing ring;

  explicit StackRing(const Napi::Value& dims)
      : T(option(dims, "T")),
        K(option(dims, "K")),
        N(all_rows(dims, begins)),
        residual(flag(member(dims, "residual"))),
        count(count_of(dims)),
        ring(N, K, residual ? 2 * count : count) {}

  WeightView at(int64_t i, size_t part) const {
    WeightView view;
    view.storage = Storage::kNvfp4;
    view.rows = begins[part + 1] - begins[part];
    view.cols = K;
    view.packed = ring.at(i, begins[part]);
    if (residual) view.residual = ring.at(count + i, begins[part]);
    return view;
  }
  size_t parts() const { return begins.size() - 1; }

 private:
  static int64_t all_rows(const Napi::Value& dims, std::vector<int64_t>& begins) {
    const auto rows = member(dims, "rows").As<Napi::Array>();
    for (uint32_t i = 0; i < rows.Length(); ++i) begins.push_back(begins.back() + integer(rows.Get(i)));
    return begins.back();
  }
  int64_t count_of(const Napi::Value& dims) const {
    const int64_t bytes = N * K / 16 * 9 * (residual ? 2 : 1);
    return std::max<int64_t>(1, (option(dims, "ringBytes") + bytes - 1) / bytes);
  }
};

double time_gemv(const Napi::Value& dims, int64_t replays) {
  const StackRing ring(dims);
  const CudaBuffer x = random_bf16(ring.T * ring.K), y = random_bf16(ring.T * ring.N), norm = ones(ring.K);
  GemvCudaArgs args{};
  args.matrix_count = static_cast<int>(ring.parts());
  args.x = x.as<uint16_t>();
  args.T = ring.T;
  args.K = ring.K;
  args.accumulate = flag(member(dims, "accumulate"));
  args.swiglu = flag(member(dims, "swiglu"));
  args.overlap_previous = flag(member(dims, "overlap"));
  if (flag(member(dims, "norm"))) args.norm = norm.as<float>();
  const int64_t launches = std::max(ring.count, option(dims, "launches"));
  return cuda_graph_microseconds(launches, replays, [&](int64_t i, CudaStream stream) {
    for (size_t part = 0; part < ring.parts(); ++part) {
      const WeightView w = ring.at(i % ring.count, part);
      args.matrices[part] = {y.as<uint16_t>() + ring.T * ring.begins[part], w.rows, w.packed, w.residual, 0};
    }
    gemv_nvfp4_cuda(args, stream);
  });
}

double time_backward_input(const Napi::Value& dims, int64_t replays) {
  const StackRing ring(dims);
  const CudaBuffer dx(ring.T * ring.K * 2), dy = random_bf16(ring.T * ring.N);
  std::vector<WeightView> views(ring.parts());
  const auto count = static_cast<int>(views.size());
  const auto stack = [&](int64_t i) {
    for (size_t part = 0; part < views.size(); ++part) views[part] = ring.at(i, part);
  };
  stack(0);
  const CudaBuffer scratch(gemv_backward_input_scratch_bytes(views.data(), count, ring.T));
  return cuda_graph_microseconds(ring.count, replays, [&](int64_t i, CudaStream stream) {
    stack(i);
    GemvBackwardInputCuda args{.dx = dx.as<uint16_t>(), .weights = views.data(), .weight_count = count, .T = ring.T};
    take_columns(args, dy.as<uint16_t>());
    args.scratch = scratch.as<void>();
    gemv_backward_input_cuda(args, stream);
  });
}

constexpr int64_t kHidden = 2560, kQuery = 4096, kKeys = 1024, kFfn = 9728, kVocab = 151936;

constexpr int64_t kHeads = 32, kKeyHeads = 8, kHeadDim = 128, kPage = 64;

// The launches of a token between embedding and sampling, as model/decode_cuda.cpp has them.
struct TimedLayers {
  int64_t T, layers, context;
  WeightRing qkv, o, gate_up, down, head;
  CudaBuffer h, q, k, v, att, act, logits, norm, attention_scratch;
  TimedPages pages;

  explicit TimedLayers(const Napi::Value& dims)
      : T(option(dims, "T")),
        layers(option(dims, "layers")),
        context(option(dims, "context")),
        qkv(kQuery + 2 * kKeys, kHidden, layers),
        o(kHidden, kQuery, layers),
        gate_up(2 * kFfn, kHidden, layers),
        down(kHidden, kFfn, layers),
        head(kVocab, kHidden, 1),
        h(random_bf16(T * kHidden)),
        q(random_bf16(T * kQuery)),
        k(random_bf16(T * kKeys)),
        v(random_bf16(T * kKeys)),
        att(random_bf16(T * kQuery)),
        act(T * kFfn * 2),
        logits(T * kVocab * 4),
        norm(ones(kHidden)),
        pages(context + 1, kKeyHeads, kPage, kHeadDim) {
    const std::vector<uint8_t> zeros(
        static_cast<size_t>(attention_decode_fused_scratch_bytes(kHeads, kKeyHeads, kHeadDim)));
    attention_scratch = on_device(zeros.data(), static_cast<int64_t>(zeros.size()));
  }

  void product(bool overlap, const CudaBuffer& x, const CudaBuffer* x_norm, const WeightRing& ring, int64_t i,
               std::initializer_list<std::pair<const CudaBuffer*, int64_t>> ys, CudaStream stream) const {
    GemvCudaArgs args{};
    args.x = x.as<uint16_t>();
    args.T = T;
    args.K = ring.K;
    args.norm = x_norm ? x_norm->as<float>() : nullptr;
    args.accumulate = !x_norm;
    args.overlap_previous = overlap;
    args.matrix_count = 0;
    int64_t begin = 0;
    for (const auto& [y, rows] : ys) {
      GemvMatrix& matrix = args.matrices[args.matrix_count++];
      matrix.y = y->as<void>();
      matrix.N = rows;
      matrix.w = ring.at(i, begin);
      begin += rows;
    }
    args.swiglu = ring.N == 2 * kFfn;
    args.y_type = ring.N == kVocab ? CudaFloat::kF32 : CudaFloat::kBF16;
    gemv_nvfp4_cuda(args, stream);
  }

  void attend(bool overlap, int64_t i, CudaStream stream) const {
    if (context == 0) return;
    AttentionDecodeFusedCuda args{};
    args.y = att.as<uint16_t>();
    args.slots = {pages.keys(i).get(), pages.values(i).get(), kPage, context, nullptr};
    args.q = q.as<uint16_t>();
    args.k = k.as<uint16_t>();
    args.v = v.as<uint16_t>();
    args.q_w = args.k_w = args.cosines = args.sines = norm.as<float>();  // any values do
    args.scratch = attention_scratch.as<void>();
    args.Q = kHeads;
    args.KV = kKeyHeads;
    args.D = kHeadDim;
    args.eps = 1e-6f;
    args.overlap_previous = overlap;
    attention_decode_fused_cuda(args, stream);
  }

  double time(const Napi::Value& variant, int64_t replays) const {
    const auto overlaps = [&](const char* launch) { return flag(member(variant, launch)); };
    return cuda_graph_microseconds(1, replays, [&](int64_t, CudaStream stream) {
      for (int64_t i = 0; i < layers; ++i) {
        product(overlaps("qkv"), h, &norm, qkv, i, {{&q, kQuery}, {&k, kKeys}, {&v, kKeys}}, stream);
        attend(overlaps("attention"), i, stream);
        product(overlaps("o"), att, nullptr, o, i, {{&h, kHidden}}, stream);
        product(overlaps("gateUp"), h, &norm, gate_up, i, {{&act, kFfn}, {&act, kFfn}}, stream);
        product(overlaps("down"), act, nullptr, down, i, {{&h, kHidden}}, stream);
      }
      product(overlaps("head"), h, &norm, head, 0, {{&logits, kVocab}}, stream);
    });
  }
};

Napi::Value run_time_layers(const Napi::CallbackInfo& info) {
  const TimedLayers token(info[0]);
  const auto variants = member(info[0], "variants").As<Napi::Array>();
  const Napi::Array times = Napi::Array::New(info.Env(), variants.Length());
  for (uint32_t i = 0; i < variants.Length(); ++i) times.Set(i, token.time(variants.Get(i), integer(info[1])));
  return times;
}

Napi::Value run_time_gemv(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), time_gemv(info[0], integer(info[1])));
}

Napi::Value run_time_backward_input(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), time_backward_input(info[0], integer(info[1])));
}

#endif

}  // namespace

void register_gemv_cuda_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("gemvCuda", Napi::Function::New<with_cuda<QN_CUDA_RUN(run_gemv)>>(env, "gemvCuda"));
  ops.Set("gemvChainCuda", Napi::Function::New<with_cuda<QN_CUDA_RUN(run_chain)>>(env, "gemvChainCuda"));
  ops.Set("gemvBackwardInputCuda",
          Napi::Function::New<with_cuda<QN_CUDA_RUN(run_backward_input)>>(env, "gemvBackwardInputCuda"));
  ops.Set("gemvBackwardWeightCuda",
          Napi::Function::New<value_with_cuda<QN_CUDA_VALUE(run_backward_weight)>>(env, "gemvBackwardWeightCuda"));
  ops.Set("gemvBackwardInputCudaTime", Napi::Function::New<value_with_cuda<QN_CUDA_VALUE(run_time_backward_input)>>(
                                           env, "gemvBackwardInputCudaTime"));
  ops.Set("gemvCudaTime", Napi::Function::New<value_with_cuda<QN_CUDA_VALUE(run_time_gemv)>>(env, "gemvCudaTime"));
  ops.Set("gemvLayersCudaTime",
          Napi::Function::New<value_with_cuda<QN_CUDA_VALUE(run_time_layers)>>(env, "gemvLayersCudaTime"));
}

}  // namespace qn
