// ops/adamw_rows.h with AVX-512.
#include "ops/adamw_rows.h"

namespace qn {

const AdamwKernels kAdamwAvx512 = kAdamwRows;

}  // namespace qn
