// Every kernel and every launch, as one translation unit for a CPU: what tests run (module _cuda_emulated).
#include "gemm_sm75.cu"
#include "gemm_sm80.cu"
#include "gemm_sm90a.cu"
#include "general.cu"
#include "halves_sm80.cu"
#include "rows.cu"
#include "weight_rows.cu"
#include "weights.cu"
