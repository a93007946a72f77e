{
  "variables": {
    "cuda_enabled%": "<!(node scripts/detect-cuda.cjs enabled)",
    "cuda_home%": "<!(node scripts/detect-cuda.cjs home)",
    "cuda_libs%": "<!(node scripts/detect-cuda.cjs libs)",
    "cuda_archs%": "<!(node scripts/detect-cuda.cjs flags)",
    # Sanitizer builds: node-gyp rebuild -- -Dqn_sanitize=address,undefined
    "qn_sanitize%": "",
  },
  "target_defaults": {
    "include_dirs": ["csrc"],
    "cflags!": ["-fno-exceptions"],
    "cflags_cc!": ["-fno-exceptions", "-fno-rtti", "-std=gnu++17"],
    # No contraction: a*b+c rounds twice everywhere unless std::fma is written, so that CPU variants and CUDA agree bit for bit.
    "cflags": ["-O3", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter", "-ffp-contract=off",
      # No result depends on errno or on floating-point exception flags; saying so lets loops with sqrt and selects vectorise.
      "-fno-math-errno", "-fno-trapping-math"],
    "cflags_cc": ["-std=c++20", "-fexceptions"],
    "xcode_settings": {
      "GCC_ENABLE_CPP_EXCEPTIONS": "YES",
      "CLANG_CXX_LANGUAGE_STANDARD": "c++20",
      "GCC_SYMBOLS_PRIVATE_EXTERN": "YES",
      "OTHER_CPLUSPLUSFLAGS": ["-ffp-contract=off"],
    },
    "conditions": [
      ["qn_sanitize!=''", {
        "cflags": ["-fsanitize=<(qn_sanitize)", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"],
        "ldflags": ["-fsanitize=<(qn_sanitize)"],
      }],
    ],
  },
  "targets": [
    {
      "target_name": "qwen3_nvfp4",
      "sources": ["<!@(node scripts/gyp-sources.cjs csrc/core csrc/format csrc/ops csrc/model csrc/train csrc/binding)"],
      "include_dirs": ["<!@(node -p \"require('node-addon-api').include\")"],
      # The last define: an exception that cannot be thrown because the worker is being terminated is dropped, not fatal.
      "defines": ["NAPI_VERSION=9", "NAPI_CPP_EXCEPTIONS", "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS"],
      "conditions": [
        ["target_arch=='x64'", { "dependencies": ["qn_avx2", "qn_avx512"] }],
        ["target_arch=='arm64'", { "dependencies": ["qn_neon"] }],
        ["cuda_enabled==1", {
          "defines": ["QN_WITH_CUDA=1"],
          "dependencies": ["qn_cuda"],
          "include_dirs": ["<(cuda_home)/include"],
          "libraries": ["-L<(cuda_libs)", "-lcudart_static", "-lrt", "-lpthread", "-ldl"],
        }],
      ],
    },
  ],
  "conditions": [
    ["target_arch=='x64'", {
      "targets": [
        {
          "target_name": "qn_avx2",
          "type": "static_library",
          "sources": ["<!@(node scripts/gyp-sources.cjs csrc --suffix=_avx2.cpp)"],
          "cflags": ["-mavx2", "-mfma", "-mf16c"],
          "xcode_settings": { "OTHER_CPLUSPLUSFLAGS": ["-mavx2", "-mfma", "-mf16c"] },
        },
        {
          "target_name": "qn_avx512",
          "type": "static_library",
          "sources": ["<!@(node scripts/gyp-sources.cjs csrc --suffix=_avx512.cpp)"],
          # GCC 12's own intrinsics read a deliberately undefined register (GCC bug 105593).
          "cflags": ["-Wno-uninitialized", "-Wno-maybe-uninitialized", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c", "-mprefer-vector-width=512"],
          "xcode_settings": { "OTHER_CPLUSPLUSFLAGS": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"] },
        },
      ],
    }],
    ["target_arch=='arm64'", {
      "targets": [{
        "target_name": "qn_neon",
        "type": "static_library",
        "sources": ["<!@(node scripts/gyp-sources.cjs csrc --suffix=_neon.cpp)"],
      }],
    }],
    ["cuda_enabled==1", {
      "targets": [{
        "target_name": "qn_cuda",
        "type": "static_library",
        "sources": ["<!@(node scripts/gyp-sources.cjs csrc --cuda)"],
        "rules": [{
          "rule_name": "nvcc",
          "extension": "cu",
          # Every header, because make learns of no others from nvcc.
          "inputs": ["scripts/nvcc-compile.cjs", "<!@(node scripts/gyp-sources.cjs csrc --headers)"],
          "outputs": ["<(INTERMEDIATE_DIR)/<(RULE_INPUT_ROOT).cu.o"],
          "process_outputs_as_sources": 1,
          "message": "nvcc <(RULE_INPUT_PATH)",
          "action": ["node", "scripts/nvcc-compile.cjs", "<(cuda_home)", "<(RULE_INPUT_PATH)", "<@(_outputs)", "<(cuda_archs)", "-Icsrc"],
        }],
      }],
    }],
  ],
}
