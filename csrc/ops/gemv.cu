#include "ops/gemv.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "core/cuda_check.h"
#include "core/dtype.h"
#include "core/status.h"

namespace qn {

namespace {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * 32;
constexpr int kTileRows = 8;  // weight rows of one product: the n of mma.m16n8k16
constexpr int kPiece = 32;    // columns of a 16-byte load of codes: two blocks
constexpr int kUnit = 256;    // columns of one step of a warp: 128 bytes a row, two loads a lane
constexpr int kUnitPieces = 2;
constexpr int kDepth = 4;  // units in flight a warp: 16 warps · 4 · 1 KiB = 64 KiB a multiprocessor

// Codes decode to e2m1 · 2^-126 and scales to e4m3 · 2^118, so a weight is 2^-8 of its value; the store repays it.
constexpr float kDecodeScale = 256.0f;

struct Kernel {
  void* y;
  const uint16_t* x;
  const uint8_t* codes;
  const uint8_t* scales;
  float scale;  // of a sum: global · kDecodeScale
  int T;
  int64_t N, K;
  bool y_f32, accumulate;
};

// One lane's share of a unit: columns kPiece · q + {0, 128} of row g, where lane = 4 · g + q.
struct Unit {
  uint4 codes[kUnitPieces];
  uint32_t scales[kUnitPieces];  // two e4m3 bytes
};

// Codes are read once, so they must not push x, scales or the caller's activations out of L1.
__device__ __forceinline__ uint4 load_streamed(const uint8_t* at) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(at));
  return v;
}

// Columns past K are zeros under scale zero. Without kWide a row begins at any multiple of 8 bytes.
template <bool kWide>
__device__ __forceinline__ Unit load_unit(const Kernel& p, int64_t row, int64_t column) {
  Unit unit;
#pragma unroll
  for (int j = 0; j < kUnitPieces; ++j) {
    const int64_t k = column + j * (4 * kPiece);
    const int64_t at = row * p.K + k;
    unit.codes[j] = {0, 0, 0, 0};
    unit.scales[j] = 0;
    if (k < p.K) {
      if constexpr (kWide) {
        unit.codes[j] = load_streamed(p.codes + at / 2);
        unit.scales[j] = __ldg(reinterpret_cast<const uint16_t*>(p.scales + at / 16));
      } else {
        const auto* codes = reinterpret_cast<const uint2*>(p.codes + at / 2);
        const uint2 low = __ldg(codes);
        unit.codes[j] = {low.x, low.y, 0, 0};
        unit.scales[j] = __ldg(p.scales + at / 16);
        if (k + 16 < p.K) {
          const uint2 high = __ldg(codes + 1);
          unit.codes[j].z = high.x;
          unit.codes[j].w = high.y;
          unit.scales[j] |= static_cast<uint32_t>(__ldg(p.scales + at / 16 + 1)) << 8;
        }
      }
    }
  }
  return unit;
}

__device__ __forceinline__ uint32_t multiply(uint32_t a, uint32_t b) {
  const __nv_bfloat162 product =
      __hmul2(*reinterpret_cast<__nv_bfloat162*>(&a), *reinterpret_cast<__nv_bfloat162*>(&b));
  return *reinterpret_cast<const uint32_t*>(&product);
}

// Two e4m3 bytes to bf16x2 of scale · 2^118. A byte shifted to bf16's fields is scale · 2^-120, subnormals included;
// one factor of 2^238 does not exist, so two multiply it.
__device__ __forceinline__ uint32_t decode_scales(uint32_t bytes) {
  const uint32_t raw = __byte_perm(bytes, 0, 0x4140) << 4;
  return multiply(multiply(raw, 0x7f007f00u), 0x77007700u);
}

// Eight codes, times a scale in both halves, as bf16 pairs (0, 4), (1, 5), (2, 6), (3, 7), low half first. The three
// bits of a magnitude become the two lowest exponent bits and the highest mantissa bit (e2m1 · 2^-126, code .5 as a
// subnormal), the fourth bit the sign; the signs' stray bits fall under kMagnitude, which hides them.
__device__ __forceinline__ uint4 decode_codes(uint32_t q, uint32_t scale) {
  constexpr uint32_t kMagnitude = 0x01c001c0u;
  const uint32_t odd = q & 0x80808080u, even = q & 0x08080808u;
  const auto merge = [](uint32_t magnitude, uint32_t sign) { return (magnitude & kMagnitude) | (sign & ~kMagnitude); };
  return {multiply(merge(q << 6, even << 12), scale), multiply(merge(q << 2, odd << 8), scale),
          multiply(merge(q >> 2, even << 4), scale), multiply(merge(q >> 6, odd), scale)};
}

// sum[token 0..7][row 0..7] += x · w over 16 columns; tokens 8..15 of the instruction are zeros.
__device__ __forceinline__ void multiply_add(float4& sum, uint32_t x0, uint32_t x1, uint32_t w0, uint32_t w1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %5}, {%7, %8}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum.x), "+f"(sum.y), "+f"(sum.z), "+f"(sum.w)
      : "r"(x0), "r"(0), "r"(x1), "r"(w0), "r"(w1));
}

// x in shared memory, in units of eight columns (16 bytes, in the pair order of decode_codes):
// [column / 128][column / 8 % 4][token][column / 32 % 4], so that the lanes of a load read one contiguous piece.
template <int kTokens>
__device__ __forceinline__ int staged_at(int octet, int token) {
  return ((octet / 16 * 4 + octet % 4) * kTokens + token) * 4 + octet / 4 % 4;
}

template <int kTokens>
__device__ __forceinline__ void stage_x(uint4* staged, const Kernel& p, int units) {
  const int octets = units * (kUnit / 8), inside = static_cast<int>(p.K / 8);
  for (int token = 0; token < p.T; ++token) {
    for (int octet = static_cast<int>(threadIdx.x); octet < octets; octet += kThreads) {
      uint4 v{0, 0, 0, 0};
      if (octet < inside) v = *reinterpret_cast<const uint4*>(p.x + token * p.K + int64_t{octet} * 8);
      staged[staged_at<kTokens>(octet, token)] = {__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632),
                                                  __byte_perm(v.y, v.w, 0x5410), __byte_perm(v.y, v.w, 0x7632)};
    }
  }
}

__device__ __forceinline__ void store_one(const Kernel& p, int64_t at, float value) {
  if (p.y_f32) {
    float* y = static_cast<float*>(p.y) + at;
    *y = p.accumulate ? *y + value : value;
  } else {
    uint16_t* y = static_cast<uint16_t*>(p.y) + at;
    *y = f32_to_bf16(p.accumulate ? bf16_to_f32(*y) + value : value);
  }
}

// The sums of token lane / 4 and rows 2 · (lane % 4), + 1 of a tile.
__device__ __forceinline__ void store_tile(const Kernel& p, int64_t tile, int lane, float2 sum) {
  const int token = lane / 4;
  const int64_t row = tile * kTileRows + 2 * (lane % 4);
  if (token >= p.T) return;
  if (row < p.N) store_one(p, token * p.N + row, sum.x * p.scale);
  if (row + 1 < p.N) store_one(p, token * p.N + row + 1, sum.y * p.scale);
}

// computes   y[T, N] (+)= x[T, K] · wᵀ, w decoded in registers
// moves      read N·K/2 + N·K/16 B once, 2·T·K B a block from L2; write 2·T·N B (f32: 4)      bound: memory
// launch     grid min(multiprocessors, N/8), block 512, smem 2·kTokens·K B + 8 KiB     a block owns whole tiles of 8
//            rows; its (tile, 256 columns) units are dealt to its 16 warps in equal runs, whatever the tile
// needs      K % 16 == 0 (kWide: K % 32 == 0), x and codes 16-byte aligned, 2·kTokens·K B of shared memory
// numerics   weight exact in bf16, f32 tensor-core sums, runs of one tile added in the order of the warps
// measured   not yet
template <int kTokens, bool kWide>
__global__ void __launch_bounds__(kThreads, 1) gemv_nvfp4_kernel(const Kernel p) {
  extern __shared__ uint4 staged[];
  __shared__ float2 heads[kWarps][32], tails[kWarps][32];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4, q = lane % 4;

  const int64_t tiles = (p.N + kTileRows - 1) / kTileRows;
  const int64_t first_tile = tiles * blockIdx.x / gridDim.x;
  const int units = static_cast<int>((p.K + kUnit - 1) / kUnit);  // of a tile
  const auto total = static_cast<int>((tiles * (blockIdx.x + 1) / gridDim.x - first_tile) * units);
  const auto begin_of = [&](int w) { return static_cast<int>(int64_t{total} * w / kWarps); };
  const int begin = begin_of(warp), end = begin_of(warp + 1);

  int64_t load_tile = first_tile + begin / units;
  int load_at = begin % units;
  const auto load_next = [&] {
    // Rows past N repeat the last one; their sums are never stored.
    const int64_t row = min(load_tile * kTileRows + g, p.N - 1);
    const Unit unit = load_unit<kWide>(p, row, int64_t{load_at} * kUnit + q * kPiece);
    if (++load_at == units) {
      load_at = 0;
      ++load_tile;
    }
    return unit;
  };

  // The first loads need nothing of x, so they travel while it is staged.
  Unit ring[kDepth];
#pragma unroll
  for (int d = 0; d < kDepth; ++d) {
    if (begin + d < end) ring[d] = load_next();
  }
  stage_x<kTokens>(staged, p, units);
  __syncthreads();

  // Lanes of tokens past T repeat the last one, for the same reason.
  const uint4* x = staged + min(g, p.T - 1) * 4 + q;
  int64_t tile = first_tile + begin / units;
  int at = begin % units;
  bool from_start = at == 0;  // whether this warp has the tile's first unit
  float4 sums[2] = {};        // two chains, so that a product need not wait for the one before

  for (int base = begin; base < end; base += kDepth) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      if (base + d >= end) break;
      const Unit unit = ring[d];
      if (base + d + kDepth < end) ring[d] = load_next();
#pragma unroll
      for (int j = 0; j < kUnitPieces; ++j) {
        const uint32_t scales = decode_scales(unit.scales[j]);
        const uint32_t words[4] = {unit.codes[j].x, unit.codes[j].y, unit.codes[j].z, unit.codes[j].w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint4 w = decode_codes(words[i], __byte_perm(scales, 0, i < 2 ? 0x1010 : 0x3232));
          const uint4 a = x[((at * kUnitPieces + j) * 4 + i) * kTokens * 4];
          multiply_add(sums[0], a.x, a.y, w.x, w.y);
          multiply_add(sums[1], a.z, a.w, w.z, w.w);
        }
      }
      const bool to_end = ++at == units;
      if (to_end || base + d + 1 == end) {
        const float2 sum{sums[0].x + sums[1].x, sums[0].y + sums[1].y};
        if (from_start && to_end) {
          store_tile(p, tile, lane, sum);
        } else {
          (from_start ? tails : heads)[warp][lane] = sum;
        }
        sums[0] = sums[1] = float4{0, 0, 0, 0};
        from_start = true;
        if (to_end) {
          at = 0;
          ++tile;
        }
      }
    }
  }
  __syncthreads();

  // Whoever has the beginning of a tile that ends with a later warp adds up its parts.
  const int unfinished = end % units;
  if (unfinished == 0 || begin == end || end - begin < unfinished) return;
  const int tile_end = end - unfinished + units;
  float2 sum = tails[warp][lane];
  for (int w = warp + 1; w < kWarps && begin_of(w) < tile_end; ++w) {
    if (begin_of(w) == begin_of(w + 1)) continue;
    sum.x += heads[w][lane].x;
    sum.y += heads[w][lane].y;
  }
  store_tile(p, first_tile + end / units, lane, sum);
}

int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  QN_CUDA_CHECK(cudaGetDevice(&device));
  QN_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

// Of the staged x; the partial sums take the rest.
int64_t staging_limit() {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - 2 * kWarps * 32 * int64_t{sizeof(float2)};
}

int64_t staged_bytes(int64_t tokens, int64_t K) { return tokens * ((K + kUnit - 1) / kUnit * kUnit) * 2; }

template <int kTokens, bool kWide>
void launch(const Kernel& p, cudaStream_t stream) {
  const int64_t tiles = (p.N + kTileRows - 1) / kTileRows;
  const auto grid = static_cast<unsigned>(std::min<int64_t>(tiles, device_attribute(cudaDevAttrMultiProcessorCount)));
  const auto bytes = static_cast<int>(staged_bytes(kTokens, p.K));
  const auto kernel = gemv_nvfp4_kernel<kTokens, kWide>;
  if (bytes > 32 * 1024)
    QN_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<grid, kThreads, static_cast<size_t>(bytes), stream>>>(p);
  QN_CUDA_CHECK(cudaGetLastError());
}

void launch_tokens(const Kernel& p, cudaStream_t stream) {
  if (p.K % kPiece != 0) {
    // No model has such a width; one version serves it, unless only fewer tokens fit.
    return p.T > 1 ? launch<8, false>(p, stream) : launch<1, false>(p, stream);
  }
  if (p.T == 1) return launch<1, true>(p, stream);
  if (p.T == 2) return launch<2, true>(p, stream);
  if (p.T <= 4) return launch<4, true>(p, stream);
  launch<8, true>(p, stream);
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

bool gemv_nvfp4_fits_cuda(int64_t K) { return staged_bytes(1, K) <= staging_limit(); }

void gemv_nvfp4_cuda(const GemvCudaArgs& args, CudaStream stream) {
  const int64_t y_bytes = args.y_type == CudaFloat::kF32 ? 4 : 2;
  if (args.T > kGemvTokens) fail(Code::kInternal, "a GEMV of %lld tokens", static_cast<long long>(args.T));
  if (args.T * args.N == 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (args.K == 0) {
    if (!args.accumulate)
      QN_CUDA_CHECK(cudaMemsetAsync(args.y, 0, static_cast<size_t>(args.T * args.N * y_bytes), cuda_stream));
    return;
  }
  const int64_t limit = staging_limit();
  // As many tokens a launch as fit the shared memory: all of them on an H200 up to K = 13,824.
  int64_t group = kGemvTokens;
  while (group > 1 && (staged_bytes(group, args.K) > limit)) group /= 2;
  if (staged_bytes(group, args.K) > limit) {
    fail(Code::kUnsupported, "a GEMV over %lld columns does not fit the shared memory of this device",
         static_cast<long long>(args.K));
  }
  if (args.K % kPiece != 0 && group < kGemvTokens) group = 1;
  for (int64_t t = 0; t < args.T; t += group) {
    launch_tokens({.y = static_cast<uint8_t*>(args.y) + t * args.N * y_bytes,
                   .x = args.x + t * args.K,
                   .codes = args.w.codes,
                   .scales = args.w.scales,
                   .scale = args.w.global_scale * kDecodeScale,
                   .T = static_cast<int>(std::min(group, args.T - t)),
                   .N = args.N,
                   .K = args.K,
                   .y_f32 = args.y_type == CudaFloat::kF32,
                   .accumulate = args.accumulate},
                  cuda_stream);
  }
}

}  // namespace qn
