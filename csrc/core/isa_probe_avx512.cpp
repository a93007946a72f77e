// Keeps the AVX-512 library non-empty until the first kernel lands.
namespace qn {
int avx512_library_linked() { return 1; }
}  // namespace qn
