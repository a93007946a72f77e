// Decoding on CUDA: one token's launches are recorded as a graph and replayed. The sampled id stays on the device,
// where the next step reads it; the host learns of it through a ring in mapped memory and runs one step behind, so that
// neither JavaScript nor the host's part of a step is ever waited for.
#include "core/status.h"
#include "model/generation.h"

#if defined(QN_WITH_CUDA)

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <thread>

#include "core/cuda_graph.h"
#include "model/engine.h"
#include "ops/attention_decode_fused.h"
#include "ops/decode_begin.h"
#include "ops/elementwise.h"
#include "ops/gemv.h"
#include "ops/qk_norm_rope.h"

namespace qn {

namespace {

constexpr int32_t kRingSlots = 4;
// Steps asked for whose tokens the host has not seen: one runs while the host looks at the other.
constexpr int64_t kStepsAhead = 2;
// A graph is sized for a context of at most this many positions, and of twice as many after that.
constexpr int64_t kFirstGraphContext = 512;

// Everything one step reads and writes, at addresses that do not change.
class Decoder {
 public:
  Decoder(Model& model, KvCache& cache, const GenerateArgs& args, const Cpu& cpu)
      : model_(model),
        c_(model.config()),
        cache_(cache),
        cuda_(*model.device().cuda()),
        stream_(cuda_.stream()),
        engine_(make_engine(model.device(), cpu)),
        arena_(model.device().ledger(), MemoryKind::kActivations, plan_bytes()),
        s_(take(arena_, c_)),
        top_logprobs_(static_cast<int32_t>(std::min<int64_t>(args.sampling.top_logprobs, c_.V))),
        ring_(kRingSlots * (static_cast<int64_t>(sizeof(SampleResult)) +
                            top_logprobs_ * static_cast<int64_t>(sizeof(TokenLogprob)))),
        sampling_(args.sampling),
        fuses_attention_(attention_decode_fused_fits_cuda(c_.Q, c_.KV, c_.D, kPageTokens)) {
    widen_norms();
    for (int32_t slot = 0; slot < kRingSlots; ++slot) ring_.as<SampleResult>()[slot].position = -1;
    if (sampling_.repetition_penalty != 1.0f) {
      cuda_.zero(s_.seen, c_.V);
      mark_seen(args.history);
      mark_seen(args.prompt);
    }
    logits_ = Buffer(model.device().ledger(), MemoryKind::kActivations, c_.V * 4);
  }

  // The logits after the prompt: asks for the first token.
  void begin(const float* logits) {
    const auto position = static_cast<int32_t>(cache_.seq_len() - 1);
    cuda_.copy_in(s_.position, &position, sizeof position);
    sample(logits);
  }

  // Asks for the token after the one that was asked for last; the cache has room for it.
  void step() {
    cache_.reserve(1);
    const int64_t context = cache_.seq_len() + 1;
    cache_.device_pages(0);
    int64_t bound = kFirstGraphContext;
    while (bound < context) bound *= 2;
    CudaGraph& graph = graphs_[bound];
    if (!graph) {
      grow_attention(bound);
      // Run once as it is: what the engine needs is allocated then, and recording must not allocate.
      launch(bound);
      graph = CudaGraph(cuda_, [&] { launch(bound); });
    } else {
      graph.launch();
    }
    cache_.advance(1);
  }

  // The token whose draw has this position, once it is there.
  Sampled wait(int64_t position) {
    const SampleResult& slot = ring_.as<SampleResult>()[position % kRingSlots];
    std::atomic_ref<const int32_t> arrived(slot.position);
    const auto begin = std::chrono::steady_clock::now();
    while (arrived.load(std::memory_order_acquire) != static_cast<int32_t>(position)) {
      if (std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(2)) {
        std::this_thread::yield();
        continue;
      }
      cuda_.check();  // an error would keep the token away for ever
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    if (slot.bad_id >= 0) fail_non_finite_logit(slot.bad_id, slot.bad_value);
    Sampled token{slot.id, slot.logprob, {}};
    const TokenLogprob* top = ring_top() + (position % kRingSlots) * top_logprobs_;
    token.top.assign(top, top + top_logprobs_);
    return token;
  }

 private:
  struct Scratch {
    Activation *x, *x_norm, *q, *k, *v, *att, *gate, *up;
    int32_t *position, *next_id;
    uint8_t *seen, *sample;
    float *cosines, *sines;
    std::vector<float*> norms;  // by parameter id; null where the parameter itself is f32
  };

  template <typename AnyArena>
  Scratch take(AnyArena& arena, const ModelConfig& c) const {
    const auto activations = [&](int64_t count) {
      return reinterpret_cast<Activation*>(arena.template take<uint16_t>(count));
    };
    Scratch s{};
    s.x = activations(c.H);
    s.x_norm = activations(c.H);
    s.q = activations(c.Q * c.D);
    s.k = activations(c.KV * c.D);
    s.v = activations(c.KV * c.D);
    s.att = activations(c.Q * c.D);
    s.gate = activations(c.F);
    s.up = activations(c.F);
    s.position = arena.template take<int32_t>(1);
    s.next_id = arena.template take<int32_t>(1);
    s.seen = arena.template take<uint8_t>(c.V);
    s.sample = arena.template take<uint8_t>(sample_scratch_bytes(c.V));
    s.cosines = arena.template take<float>(c.D / 2);
    s.sines = arena.template take<float>(c.D / 2);
    for (const Parameter& p : model_.parameters()) {
      const bool widened = p.is_vector && p.storage != Storage::kF32;
      s.norms.push_back(widened ? arena.template take<float>(p.cols) : nullptr);
    }
    return s;
  }

  int64_t plan_bytes() const {
    ArenaPlan plan;
    take(plan, c_);
    return plan.bytes();
  }

  void widen_norms() {
    for (const Parameter& p : model_.parameters()) {
      float* wide = s_.norms[p.id];
      if (!wide) continue;
      const auto widen = p.storage == Storage::kF16 ? widen_f16_cuda : widen_bf16_cuda;
      widen(wide, p.dense.as<uint16_t>(), p.cols, stream_);
    }
  }

  const float* norm_weight(const Parameter& p) const { return s_.norms[p.id] ? s_.norms[p.id] : p.dense.as<float>(); }

  void mark_seen(const std::vector<int32_t>& ids) {
    const auto count = static_cast<int64_t>(ids.size());
    if (count == 0) return;
    const Buffer on_device(model_.device().ledger(), MemoryKind::kScratch, count * 4);
    cuda_.copy_in(on_device.data(), ids.data(), count * 4);
    mark_seen_cuda(s_.seen, on_device.as<int32_t>(), count, stream_);
  }

  void grow_attention(int64_t bound) {
    const int64_t bytes = fuses_attention_ ? attention_decode_fused_scratch_bytes(c_.Q, c_.KV, c_.D)
                                           : attention_decode_scratch_bytes(attention(0, bound));
    if (attention_scratch_.bytes() >= bytes) return;
    // Older graphs use the older memory and are not replayed again: contexts only grow.
    attention_scratch_ = Buffer();
    attention_scratch_ = Buffer(model_.device().ledger(), MemoryKind::kScratch, bytes);
    cuda_.zero(attention_scratch_.data(), bytes);  // what the fused launch starts from
  }

  AttentionDecodeCuda attention(int64_t layer, int64_t bound) {
    const KvCache::DevicePages pages = cache_.device_pages(layer);
    return {bf16(s_.att), bf16(s_.q),  pages.k,     pages.v, attention_scratch_.as<float>(),
            bound - 1,    s_.position, kPageTokens, 1,       c_.Q,
            c_.KV,        c_.D};
  }

  static uint16_t* bf16(Activation* x) { return reinterpret_cast<uint16_t*>(x); }

  TokenLogprob* ring_top() const { return reinterpret_cast<TokenLogprob*>(ring_.as<SampleResult>() + kRingSlots); }

  void sample(const float* logits) {
    SampleCuda args{};
    args.logits = logits;
    args.V = c_.V;
    args.position = s_.position;
    args.options = sampling_;
    args.seen = sampling_.repetition_penalty != 1.0f ? s_.seen : nullptr;
    args.next_id = s_.next_id;
    args.results = ring_.as<SampleResult>();
    args.top = top_logprobs_ > 0 ? ring_top() : nullptr;
    args.slots = kRingSlots;
    args.scratch = s_.sample;
    args.blocks = sample_blocks_cuda();
    sample_cuda(args, stream_);
  }

  // One token: ids are read and the position advances on the device.
  void launch(int64_t bound) {
    decode_begin_cuda(
        {s_.position, s_.cosines, s_.sines, c_.D, c_.rope_base, bf16(s_.x), model_.embedding().view(), s_.next_id},
        stream_);
    for (int64_t i = 0; i < c_.L; ++i) layer(i, bound);
    head();
    sample(logits_.as<float>());
  }

  // Whether these weights can be read packed by one launch.
  static bool packed(std::initializer_list<const Parameter*> weights) {
    return std::all_of(weights.begin(), weights.end(), [](const Parameter* w) {
      return w->storage == Storage::kNvfp4 && gemv_nvfp4_fits_cuda(w->cols);
    });
  }

  GemvCudaArgs product(std::initializer_list<const Parameter*> weights, std::initializer_list<Activation*> outputs,
                       const Activation* x, const Parameter* norm) const {
    GemvCudaArgs args{};
    args.x = reinterpret_cast<const uint16_t*>(x);
    args.T = 1;
    args.matrix_count = 0;
    auto y = outputs.begin();
    for (const Parameter* w : weights) {
      const WeightView view = w->view();
      GemvMatrix& matrix = args.matrices[args.matrix_count++];
      matrix.y = y == outputs.end() ? nullptr : *y++;
      matrix.N = w->rows;
      matrix.w = view.packed;
      matrix.residual = view.residual;
      args.K = w->cols;
    }
    args.norm = norm ? norm_weight(*norm) : nullptr;
    args.norm_eps = c_.eps;
    args.overlap_previous = true;
    return args;
  }

  void qkv(const LayerParameters& p) {
    if (packed({p.q_proj, p.k_proj, p.v_proj})) {
      return gemv_nvfp4_cuda(product({p.q_proj, p.k_proj, p.v_proj}, {s_.q, s_.k, s_.v}, s_.x, p.input_norm), stream_);
    }
    engine_->rms_norm(s_.x_norm, nullptr, s_.x, *p.input_norm, 1, c_.eps);
    engine_->linear(s_.q, s_.x_norm, p.q_proj->view(), 1, false);
    engine_->linear(s_.k, s_.x_norm, p.k_proj->view(), 1, false);
    engine_->linear(s_.v, s_.x_norm, p.v_proj->view(), 1, false);
  }

  // x += w · input
  void add_product(const Parameter& w, const Activation* input) {
    if (!packed({&w})) return engine_->linear(s_.x, input, w.view(), 1, true);
    GemvCudaArgs args = product({&w}, {s_.x}, input, nullptr);
    args.accumulate = true;
    gemv_nvfp4_cuda(args, stream_);
  }

  void gate_up(const LayerParameters& p) {
    if (packed({p.gate_proj, p.up_proj})) {
      GemvCudaArgs args = product({p.gate_proj, p.up_proj}, {s_.gate}, s_.x, p.post_norm);
      args.swiglu = true;
      args.overlap_previous = false;  // H200: 1333 µs a token against 1335
      return gemv_nvfp4_cuda(args, stream_);
    }
    engine_->rms_norm(s_.x_norm, nullptr, s_.x, *p.post_norm, 1, c_.eps);
    engine_->linear(s_.gate, s_.x_norm, p.gate_proj->view(), 1, false);
    engine_->linear(s_.up, s_.x_norm, p.up_proj->view(), 1, false);
    engine_->swiglu(s_.gate, s_.gate, s_.up, c_.F);
  }

  void layer(int64_t index, int64_t bound) {
    const LayerParameters& p = model_.layer(index);
    qkv(p);
    if (fuses_attention_) {
      attend(p, index, bound);
    } else {
      rotate_and_cache(p, index);
      attention_decode_cuda(attention(index, bound), stream_);
    }
    add_product(*p.o_proj, s_.att);
    gate_up(p);
    add_product(*p.down_proj, s_.gate);
  }

  void head() {
    const Parameter& w = model_.head();
    if (packed({&w})) {
      GemvCudaArgs args = product({&w}, {logits_.as<Activation>()}, s_.x, &model_.final_norm());
      args.y_type = CudaFloat::kF32;
      return gemv_nvfp4_cuda(args, stream_);
    }
    engine_->rms_norm(s_.x_norm, nullptr, s_.x, model_.final_norm(), 1, c_.eps);
    engine_->logits(logits_.as<float>(), s_.x_norm, w.view(), 1, false);
  }

  // From q, k and v as they are to the heads' results; k and v go to the cache.
  void attend(const LayerParameters& p, int64_t index, int64_t bound) {
    const KvCache::DevicePages pages = cache_.device_pages(index);
    AttentionDecodeFusedCuda args{};
    args.y = bf16(s_.att);
    args.slots = {pages.k, pages.v, kPageTokens, bound - 1, s_.position};
    args.q = bf16(s_.q);
    args.k = bf16(s_.k);
    args.v = bf16(s_.v);
    args.q_w = norm_weight(*p.q_norm);
    args.k_w = norm_weight(*p.k_norm);
    args.cosines = s_.cosines;
    args.sines = s_.sines;
    args.scratch = attention_scratch_.data();
    args.Q = c_.Q;
    args.KV = c_.KV;
    args.D = c_.D;
    args.eps = c_.eps;
    args.overlap_previous = true;
    attention_decode_fused_cuda(args, stream_);
  }

  // q is normalised and rotated in place; k and v go to the cache.
  void rotate_and_cache(const LayerParameters& p, int64_t index) {
    const KvCache::DevicePages pages = cache_.device_pages(index);
    QkNormRopeCuda args{};
    args.q = bf16(s_.q);
    args.q_raw = bf16(s_.q);
    args.k_raw = bf16(s_.k);
    args.q_w = norm_weight(*p.q_norm);
    args.k_w = norm_weight(*p.k_norm);
    args.cosines = s_.cosines;
    args.sines = s_.sines;
    args.T = 1;
    args.Q = c_.Q;
    args.KV = c_.KV;
    args.D = c_.D;
    args.eps = c_.eps;
    qk_norm_rope_cache_cuda(args, bf16(s_.v), {pages.k, pages.v, kPageTokens, 0, s_.position}, stream_);
  }

  Model& model_;
  const ModelConfig& c_;
  KvCache& cache_;
  CudaContext& cuda_;
  CudaStream stream_;
  std::unique_ptr<Engine> engine_;
  Arena arena_;
  Scratch s_;
  int32_t top_logprobs_;
  PinnedBuffer ring_;  // SampleResult[kRingSlots], then TokenLogprob[kRingSlots, top_logprobs_]
  SampleOptions sampling_;
  bool fuses_attention_;  // whether one launch serves these heads
  Buffer logits_, attention_scratch_;
  std::map<int64_t, CudaGraph> graphs_;  // by the context they are sized for
};

}  // namespace

FinishReason decode_cuda(Model& model, KvCache& cache, const GenerateArgs& args, Buffer logits, Generation& generation,
                         const Cpu& cpu) {
  const int64_t start = cache.seq_len();
  // Steps that ran ahead of the last token leave the cache as if they had not: their positions are written anew.
  const auto keep = [&](int64_t tokens) { cache.truncate(std::min(cache.seq_len(), start + tokens)); };
  try {
    Decoder decoder(model, cache, args, cpu);
    decoder.begin(logits.as<float>());
    int64_t asked = 1;
    for (;;) {
      while (asked - generation.produced() < kStepsAhead && asked < args.max_tokens &&
             cache.seq_len() < cache.max_tokens()) {
        decoder.step();
        ++asked;
      }
      if (asked == generation.produced()) return FinishReason::kCacheFull;
      const Sampled token = decoder.wait(start + generation.produced());
      const auto reason = generation.take(token);
      if (reason || (cpu.cancel && cpu.cancel->cancelled())) {
        keep(generation.produced() - 1);
        return reason.value_or(FinishReason::kCancelled);
      }
    }
  } catch (...) {
    keep(generation.produced());
    throw;
  }
}

}  // namespace qn

#else

namespace qn {

FinishReason decode_cuda(Model&, KvCache&, const GenerateArgs&, Buffer, Generation&, const Cpu&) {
  fail(Code::kInternal, "a CUDA device in a build without CUDA");
}

}  // namespace qn

#endif
