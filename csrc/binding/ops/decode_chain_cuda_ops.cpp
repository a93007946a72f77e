// Chains of products of one token on device 0 from host arrays, bf16 as Uint16Array, and for benchmarks:
//   decodeChainCuda(outputs[], products[], x, h | null, { launches?: 1, layout })   h in and out, the same before each
//                products: { weights[], source, norm?, swiglu?, accumulate?, f32?, plain? }; outputs of f32
//                Float32Array; of plain they are y, else what the messages say
//   decodeChainCudaTime({ layers, H, Q, KV, F, V, independent?, variants: layout[] }, replays)
//                µs of the embedding and products of a token, on random data, without attention: o reads q, of Q rows;
//                independent: every product reads what was there before; of a layout also work: an index of ChainWork
//   decodeChainObstacleCuda(products[])   a reason, or ''
// layout stands for the fields of ChainTuning.
#include <algorithm>
#include <vector>

#include "binding/ops/cuda_ops.h"
#include "binding/ops/weight_ring.h"
#include "core/cuda_graph_timer.h"
#include "ops/decode_begin.h"
#include "ops/decode_chain.h"

namespace qn {

namespace {

#if defined(QN_WITH_CUDA)

Napi::Value member(const Napi::Value& options, const char* name) {
  return options.IsObject() ? options.As<Napi::Object>().Get(name) : options;
}

ChainTuning tuning_of(const Napi::Value& options) {
  return {static_cast<int>(option(options, "warps")), static_cast<int>(option(options, "slots")),
          static_cast<int>(option(options, "blocks")), static_cast<ChainWork>(option(options, "work"))};
}

CudaBuffer zeros(int64_t bytes) {
  const std::vector<uint8_t> values(static_cast<size_t>(bytes));
  return on_device(values.data(), bytes);
}

// The stages on the device.
CudaBuffer upload(const ChainPlan& plan) {
  return on_device(plan.stages.data(), static_cast<int64_t>(plan.stages.size() * sizeof(ChainStage)));
}

// Products of host arrays, their weights and outputs on the device.
struct Products {
  std::vector<DeviceWeight> weights;
  std::vector<CudaBuffer> norms, outputs, messages;
  std::vector<int64_t> counts;  // of outputs
  std::vector<ChainProduct> products;

  explicit Products(const Napi::Value& value) {
    const auto array = value.As<Napi::Array>();
    for (uint32_t i = 0; i < array.Length(); ++i) add(array.Get(i));
  }

  void add(const Napi::Value& from) {
    ChainProduct product{};
    const auto list = member(from, "weights").As<Napi::Array>();
    product.matrix_count = static_cast<int>(list.Length());
    product.swiglu = flag(member(from, "swiglu"));
    product.accumulate = flag(member(from, "accumulate"));
    product.source = static_cast<int>(option(from, "source", -1));
    int64_t count = 0;
    for (uint32_t i = 0; i < list.Length(); ++i) {
      const WeightView& view = weights.emplace_back(weight_view(list.Get(i))).view;
      product.w[i] = view.packed;
      product.N[i] = view.rows;
      product.K = view.cols;
      if (i == 0 || !product.swiglu) count += view.rows;
    }
    if (member(from, "norm").IsTypedArray()) {
      norms.push_back(on_device(array_data<float>(member(from, "norm")), product.K * 4));
      product.norm = norms.back().as<float>();
    }
    counts.push_back(count);
    product.y_f32 = flag(member(from, "f32"));
    CudaBuffer y, words;
    if (product.y_f32 || flag(member(from, "plain"))) y = zeros(count * (product.y_f32 ? 4 : 2));
    if (!product.y_f32) words = zeros(count * 4);
    product.y = y.as<void>();
    product.messages = words.as<uint64_t>();
    outputs.push_back(std::move(y));
    messages.push_back(std::move(words));
    products.push_back(product);
  }

  void download(size_t i, const Napi::Value& to) const {
    if (products[i].y_f32) return outputs[i].download(array_data<float>(to));
    if (products[i].y) return outputs[i].download(array_data<uint16_t>(to));
    std::vector<uint64_t> words(static_cast<size_t>(counts[i] / 2));
    messages[i].download(words.data());
    auto* const values = array_data<uint16_t>(to);
    for (size_t w = 0; w < words.size(); ++w) {
      values[2 * w] = static_cast<uint16_t>(words[w]);
      values[2 * w + 1] = static_cast<uint16_t>(words[w] >> 16);
    }
  }
};

void run_chain(const Napi::CallbackInfo& info) {
  const auto outputs = info[0].As<Napi::Array>();
  const Products given(info[1]);
  const DeviceArray x(info[2]);
  const Napi::Value options = info[4];
  const ChainPlan plan = plan_chain(given.products);
  if (const char* obstacle = chain_obstacle_cuda(plan)) fail(Code::kUnsupported, "%s", obstacle);
  const CudaBuffer stages = upload(plan);
  CudaBuffer h(std::max<int64_t>(plan.H * 2, 16)), epoch(4);
  ChainCuda args{};
  args.plan = &plan;
  args.stages = stages.as<ChainStage>();
  args.epoch = epoch.as<int32_t>();
  args.x = x.bf16();
  args.h = h.as<uint16_t>();
  args.norm_eps = 1e-6f;
  args.tuning = tuning_of(options);
  for (int32_t i = 0; i < option(options, "launches", 1); ++i) {
    epoch.upload(&i);
    if (plan.H > 0) h.upload(array_data<uint16_t>(info[3]));
    chain_cuda(args, nullptr);
  }
  if (plan.H > 0) h.download(array_data<uint16_t>(info[3]));
  for (uint32_t i = 0; i < outputs.Length(); ++i) given.download(i, outputs.Get(i));
}

Napi::Value run_obstacle(const Napi::CallbackInfo& info) {
  const Products given(info[0]);
  const char* obstacle = chain_obstacle_cuda(plan_chain(given.products));
  return Napi::String::New(info.Env(), obstacle ? obstacle : "");
}

// Embedding, products and head of a token.
struct TimedChain {
  static constexpr int64_t kHeadDim = 128;

  int64_t layers, H, Q, KV, F, V;
  bool independent;
  WeightRing qkv, o, gate_up, down, head;
  CudaBuffer norm, x, h, position, id, cosines, sines, qkv_words, o_words, act_words, down_words, logits, stages;
  ChainPlan plan;

  explicit TimedChain(const Napi::Value& dims)
      : layers(option(dims, "layers")),
        H(option(dims, "H")),
        Q(option(dims, "Q")),
        KV(option(dims, "KV")),
        F(option(dims, "F")),
        V(option(dims, "V")),
        independent(flag(member(dims, "independent"))),
        qkv(Q + 2 * KV, H, layers),
        o(H, Q, layers),
        gate_up(2 * F, H, layers),
        down(H, F, layers),
        head(V, H, 1),
        norm(ones(H)),
        x(random_bf16(std::max({H, Q, F}))),
        h(random_bf16(H)),
        position(zeros(4)),
        id(zeros(4)),
        cosines(kHeadDim * 2),
        sines(kHeadDim * 2),
        qkv_words(zeros((Q + 2 * KV) * 4)),
        o_words(zeros(H * 4)),
        act_words(zeros(F * 4)),
        down_words(zeros(H * 4)),
        logits(V * 4),
        plan(plan_chain(products())) {
    stages = upload(plan);
  }

  std::vector<ChainProduct> products() const {
    std::vector<ChainProduct> list;
    const auto add = [&](const WeightRing& ring, int64_t i, std::initializer_list<int64_t> rows,
                         const CudaBuffer& words) -> ChainProduct& {
      ChainProduct product{};
      product.matrix_count = 0;
      int64_t begin = 0;
      for (const int64_t N : rows) {
        product.w[product.matrix_count] = ring.at(i, begin);
        product.N[product.matrix_count++] = N;
        begin += N;
      }
      product.K = ring.K;
      product.messages = words.as<uint64_t>();
      product.source = independent ? -1 : static_cast<int>(list.size()) - 1;
      return list.emplace_back(product);
    };
    for (int64_t i = 0; i < layers; ++i) {
      add(qkv, i, {Q, KV, KV}, qkv_words).norm = norm.as<float>();
      add(o, i, {H}, o_words).accumulate = true;
      ChainProduct& act = add(gate_up, i, {F, F}, act_words);
      act.norm = norm.as<float>();
      act.swiglu = true;
      add(down, i, {H}, down_words).accumulate = true;
    }
    ChainProduct& last = add(head, 0, {V}, down_words);
    last.norm = norm.as<float>();
    last.messages = nullptr;
    last.y = logits.as<float>();
    last.y_f32 = true;
    return list;
  }

  double time(const Napi::Value& variant, int64_t replays) const {
    ChainCuda args{};
    args.plan = &plan;
    args.stages = stages.as<ChainStage>();
    args.epoch = position.as<int32_t>();
    args.x = x.as<uint16_t>();
    args.h = h.as<uint16_t>();
    args.norm_eps = 1e-6f;
    args.tuning = tuning_of(variant);
    WeightView embedding;
    embedding.storage = Storage::kNvfp4;
    embedding.rows = V;
    embedding.cols = H;
    embedding.packed = head.at(0, 0);
    return cuda_graph_microseconds(1, replays, [&](int64_t, CudaStream stream) {
      decode_begin_cuda({position.as<int32_t>(), cosines.as<float>(), sines.as<float>(), kHeadDim, 1e6,
                         x.as<uint16_t>(), embedding, id.as<int32_t>()},
                        stream);
      chain_cuda(args, stream);
    });
  }
};

Napi::Value run_time_chain(const Napi::CallbackInfo& info) {
  const TimedChain token(info[0]);
  const auto variants = member(info[0], "variants").As<Napi::Array>();
  const Napi::Array times = Napi::Array::New(info.Env(), variants.Length());
  for (uint32_t i = 0; i < variants.Length(); ++i) times.Set(i, token.time(variants.Get(i), integer(info[1])));
  return times;
}

#endif

}  // namespace

void register_decode_chain_cuda_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("decodeChainCuda", Napi::Function::New<with_cuda<QN_CUDA_RUN(run_chain)>>(env, "decodeChainCuda"));
  ops.Set("decodeChainObstacleCuda",
          Napi::Function::New<value_with_cuda<QN_CUDA_VALUE(run_obstacle)>>(env, "decodeChainObstacleCuda"));
  ops.Set("decodeChainCudaTime",
          Napi::Function::New<value_with_cuda<QN_CUDA_VALUE(run_time_chain)>>(env, "decodeChainCudaTime"));
}

}  // namespace qn
