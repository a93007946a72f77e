// Keeps the AVX2 library non-empty until the first kernel lands.
namespace qn {
int avx2_library_linked() { return 1; }
}  // namespace qn
