// Times OpenBLAS for benchmarks/ops/linear.ts: c[m, n] = a[m, k] * b, with b[n, k] transposed or b[k, n] plain.
//   openblas-bench <threads> <m> <n> <k> <t|n> <repeats>     prints one time in seconds per repeat
#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float* values(size_t count, unsigned seed) {
  float* data = malloc(count * sizeof *data);
  for (size_t i = 0; i < count; ++i) data[i] = (float)(seed = seed * 1664525u + 1013904223u) / 2147483648.0f - 1.0f;
  return data;
}

int main(int argc, char** argv) {
  if (argc != 7) return 2;
  const int m = atoi(argv[2]), n = atoi(argv[3]), k = atoi(argv[4]), repeats = atoi(argv[6]);
  const int transposed = argv[5][0] == 't';
  openblas_set_num_threads(atoi(argv[1]));
  float *a = values((size_t)m * k, 1), *b = values((size_t)n * k, 2), *c = values((size_t)m * n, 3);
  for (int i = -2; i < repeats; ++i) {  // two to warm up
    const double start = now();
    cblas_sgemm(CblasRowMajor, CblasNoTrans, transposed ? CblasTrans : CblasNoTrans, m, n, k, 1.0f, a, k, b,
                transposed ? k : n, 0.0f, c, n);
    if (i >= 0) printf("%.9f\n", now() - start);
  }
  return 0;
}
