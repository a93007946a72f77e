// NativeModel: forward passes, recorded passes and generation.
#include "binding/native_device.h"
#include "binding/native_kv_cache.h"
#include "binding/native_model.h"
#include "binding/native_tape.h"
#include "binding/native_tensor.h"
#include "binding/train_args.h"
#include "model/generate.h"
#include "train/tape_state.h"

namespace qn {

namespace {

LogitsWanted logits_wanted_of(const std::string& name) {
  if (name == "none") return LogitsWanted::kNone;
  if (name == "last") return LogitsWanted::kLast;
  if (name == "all") return LogitsWanted::kAll;
  fail(Code::kInvalidArgument, "Expected 'all' | 'last' | 'none' for logits but received '%s'", name.c_str());
}

// ForwardArgs points into the batch, so both travel together.
struct ForwardCall {
  explicit ForwardCall(const Napi::Object& js)
      : batch(token_batch_of(js)),
        logits(logits_wanted_of(string_of(js.Get("logits")))),
        hidden_states(bool_of(js.Get("hiddenStates"))),
        reference(bool_of(js.Get("reference"))) {}

  ForwardArgs args() const {
    const TapeArgs tokens = batch.tape_args();
    return {tokens.ids, tokens.B, tokens.T, tokens.mask, tokens.starts, logits, hidden_states, reference};
  }

  TokenBatch batch;
  LogitsWanted logits;
  bool hidden_states, reference;
};

Napi::Array wrap_hidden(Napi::Env env, ModelState& state, std::vector<Buffer>& hidden, int64_t rows) {
  Napi::Array out = Napi::Array::New(env, hidden.size());
  for (uint32_t i = 0; i < hidden.size(); ++i) {
    out.Set(i, NativeTensor::wrap(env, state.device(), std::move(hidden[i]), rows, state.model.config().H));
  }
  return out;
}

Napi::Value wrap_output(Napi::Env env, ModelState& state, ForwardOutput& output, int64_t tokens) {
  Napi::Object out = Napi::Object::New(env);
  if (output.rows > 0) {
    out.Set("logits",
            NativeTensor::wrap(env, state.device(), std::move(output.logits), output.rows, state.model.config().V));
  }
  out.Set("hidden", wrap_hidden(env, state, output.hidden, tokens));
  return out;
}

GenerateArgs generate_args_of(const Napi::Object& js) {
  GenerateArgs args;
  args.prompt = int32s_of(js.Get("prompt"));
  args.history = int32s_of(js.Get("history"));
  args.stop_ids = int32s_of(js.Get("stopIds"));
  args.max_tokens = int_of(js.Get("maxTokens"));
  args.max_repeats = static_cast<int32_t>(int_of(js.Get("maxRepeats")));
  SampleOptions& sampling = args.sampling;
  sampling.temperature = static_cast<float>(number_of(js.Get("temperature")));
  sampling.top_k = static_cast<int32_t>(int_of(js.Get("topK")));
  sampling.top_p = static_cast<float>(number_of(js.Get("topP")));
  sampling.min_p = static_cast<float>(number_of(js.Get("minP")));
  sampling.repetition_penalty = static_cast<float>(number_of(js.Get("repetitionPenalty")));
  sampling.seed = seed_of(js.Get("seed"));
  sampling.top_logprobs = static_cast<int32_t>(int_of(js.Get("topLogprobs")));
  return args;
}

Napi::Object token_object(Napi::Env env, const Sampled& token) {
  Napi::Object out = Napi::Object::New(env);
  out.Set("id", token.id);
  out.Set("logprob", token.logprob);
  if (!token.top.empty()) {
    Napi::Array top = Napi::Array::New(env, token.top.size());
    for (uint32_t i = 0; i < token.top.size(); ++i) {
      Napi::Object entry = Napi::Object::New(env);
      entry.Set("id", token.top[i].id);
      entry.Set("logprob", token.top[i].logprob);
      top.Set(i, entry);
    }
    out.Set("topLogprobs", top);
  }
  return out;
}

const char* finish_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kMaxTokens:
      return "max-tokens";
    case FinishReason::kStopId:
      return "stop-token";
    case FinishReason::kCacheFull:
      return "cache-full";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  return "";
}

// Records a pass and takes its loss by take(tape, cpu): { value, tokens, tape }.
template <typename Take>
Napi::Value take_loss(Napi::Env env, std::shared_ptr<ModelState> state, JobOrder order, const TokenBatch& batch,
                      Take take) {
  struct Taken {
    std::shared_ptr<Tape> tape;
    LossValue loss;
  };
  return run_job(
      env, std::move(order),
      [state, batch, take = std::move(take)](const Cpu& cpu) {
        Taken out{record_forward(state->model, batch.tape_args(), cpu), {}};
        out.loss = take(*out.tape, cpu);
        return out;
      },
      [state](Napi::Env env, Taken& out) -> Napi::Value {
        Napi::Object object = Napi::Object::New(env);
        object.Set("value", out.loss.mean);
        object.Set("tokens", double(out.loss.tokens));
        object.Set("tape", NativeTape::wrap(env, state, std::move(out.tape)));
        return object;
      });
}

}  // namespace

Napi::Value NativeModel::JsForward(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto state = alive();
    const ForwardCall call(object_of(info[0]));
    const int64_t tokens = call.batch.B * call.batch.T;
    return run_job(
        info.Env(), order(info, 1), [state, call](const Cpu& cpu) { return forward(state->model, call.args(), cpu); },
        [state, tokens](Napi::Env env, ForwardOutput& output) { return wrap_output(env, *state, output, tokens); });
  });
}

Napi::Value NativeModel::JsForwardCached(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto state = alive();
    NativeKvCache& cache = unwrap<NativeKvCache>(info[0]);
    const ForwardCall call(object_of(info[1]));
    const int64_t tokens = call.batch.B * call.batch.T;
    if (cache.model() != state) fail(Code::kStateMismatch, "the key/value cache was made by another model");
    JobOrder ordered = order(info, 2);
    auto held = cache.hold(ordered);
    return run_job(
        info.Env(), std::move(ordered),
        [state, call, held = std::move(held)](const Cpu& cpu) {
          return forward_cached(state->model, *held, call.args(), cpu);
        },
        [state, tokens](Napi::Env env, ForwardOutput& output) { return wrap_output(env, *state, output, tokens); });
  });
}

Napi::Value NativeModel::JsRecord(const Napi::CallbackInfo& info) {
  struct Recorded {
    std::shared_ptr<Tape> tape;
    ForwardOutput output;
  };
  return guarded(info.Env(), [&] {
    auto state = alive();
    const Napi::Object js = object_of(info[0]);
    const bool hidden_states = bool_of(js.Get("hiddenStates"));
    const TokenBatch batch = token_batch_of(js);
    return run_job(
        info.Env(), order(info, 1),
        [state, batch, hidden_states](const Cpu& cpu) {
          const ModelConfig& c = state->model.config();
          const int64_t N = batch.B * batch.T;
          TapeArgs args = batch.tape_args();
          args.every_input = hidden_states;
          args.result_bytes = N * c.V * 4 + (hidden_states ? (c.L + 1) * N * c.H * 4 : 0);
          Recorded out{record_forward(state->model, args, cpu), {}};
          if (hidden_states) {
            for (int64_t i = 0; i <= c.L; ++i) {
              out.output.hidden.emplace_back(state->model.device().ledger(), MemoryKind::kActivations, N * c.H * 4);
              tape_hidden(*out.tape, i, out.output.hidden.back().as<float>(), cpu);
            }
          }
          out.output.rows = N;
          out.output.logits = Buffer(state->model.device().ledger(), MemoryKind::kActivations, N * c.V * 4);
          tape_logits(*out.tape, out.output.logits.as<float>(), cpu);
          return out;
        },
        [state, tokens = batch.B * batch.T](Napi::Env env, Recorded& out) {
          const Napi::Value object = wrap_output(env, *state, out.output, tokens);
          object.As<Napi::Object>().Set("tape", NativeTape::wrap(env, state, std::move(out.tape)));
          return object;
        });
  });
}

Napi::Value NativeModel::JsLoss(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const TokenBatch batch = token_batch_of(object_of(info[0]));
    if (batch.labels.empty()) fail(Code::kInvalidArgument, "Expected labels");
    return take_loss(info.Env(), alive(), order(info, 1), batch, [batch](Tape& tape, const Cpu& cpu) {
      return tape_cross_entropy(tape, batch.labels.data(), batch.shifted, cpu);
    });
  });
}

Napi::Value NativeModel::JsHiddenLoss(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto state = alive();
    const TokenBatch batch = token_batch_of(object_of(info[0]));
    std::vector<float> target = floats_of(object_of(info[0]).Get("target"));
    if (target.size() != batch.ids.size() * static_cast<size_t>(state->model.config().H)) {
      fail(Code::kInvalidArgument, "Expected a target of batch x tokens x H values but received %zu", target.size());
    }
    return take_loss(
        info.Env(), std::move(state), order(info, 1), batch,
        [target = std::move(target)](Tape& tape, const Cpu& cpu) { return tape_hidden_l1(tape, target.data(), cpu); });
  });
}

Napi::Value NativeModel::JsGenerate(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    auto state = alive();
    NativeKvCache& cache = unwrap<NativeKvCache>(info[0]);
    GenerateArgs args = generate_args_of(object_of(info[1]));
    if (!info[2].IsFunction()) throw Napi::TypeError::New(env, "Expected a function for onToken");
    if (cache.model() != state) fail(Code::kStateMismatch, "the key/value cache was made by another model");
    // Owned by the conversion, which dies on the JS thread after the last token's message; the lane has the address.
    auto on_token = std::make_shared<Napi::FunctionReference>(Napi::Persistent(info[2].As<Napi::Function>()));
    JobOrder ordered = order(info, 3);
    auto held = cache.hold(ordered);
    return run_job(
        env, std::move(ordered),
        [state, held = std::move(held), args = std::move(args), hub = Environment::of(env).hub(),
         callback = on_token.get()](const Cpu& cpu) {
          return generate(
              state->model, *held, args,
              [&](const Sampled& token) {
                hub->post([callback, token](Napi::Env env) { callback->Call({token_object(env, token)}); });
                return true;
              },
              cpu);
        },
        [on_token](Napi::Env env, FinishReason& reason) -> Napi::Value {
          return Napi::String::New(env, finish_name(reason));
        });
  });
}

}  // namespace qn
