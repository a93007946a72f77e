// ops/adamw_rows.h with AVX2.
#include "ops/adamw_rows.h"

namespace qn {

const AdamwKernels kAdamwAvx2 = kAdamwRows;

}  // namespace qn
