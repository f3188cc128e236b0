// varattn's C++ API: plan a step, attend. No PyTorch, no CUDA header needed to include it.
//
//   PlanConfig config = make_plan_config(cuda_device(0), options);
//   make_plan_cuda(config, lengths, plan, stream);            // once a step
//   AttentionParams params = ...;                             // params.config = config
//   mha_varlen_cuda(params, stream);                          // once a layer: one launch
//
// Everything throws varattn::Error. The C API (varattn.h) is the same in C.
#pragma once

#include <cstdint>
#include <string>

#include "varattn/params.h"
#include "varattn/plan.h"
#include "varattn/trace.h"
#include "varattn/types.h"

struct CUstream_st;
typedef struct CUstream_st* cudaStream_t;  // as in cuda_runtime_api.h

namespace varattn {

struct PlanOptions {
    int32_t num_heads_q = 0;
    int32_t num_heads_kv = 0;
    int32_t head_dim = 0;
    int32_t head_dim_v = 0;  // 0: head_dim
    DType dtype = DType::kBFloat16;
    bool causal = false;
    int32_t window_left = -1;  // -1: unbounded
    int32_t window_right = -1;
    int32_t num_splits = 0;  // upper bound on splits of a tile; 1: never split; 0: the default, 1 if batch_invariant
    bool batch_invariant = false;
    int32_t sm_margin = 0;    // SMs left free
    int32_t max_seqs = 0;     // batch size of the launches
    int32_t max_total_q = 0;  // most query tokens of a step
};

// Checks the options and picks the kernel that serves them on the device. Error messages begin with `caller`.
VARATTN_API PlanConfig make_plan_config(const Device& device, const PlanOptions& options,
                                        const char* caller = "make_plan_config");

// Name of the kernel that serves a config ("cpu", "portable_d128", ...).
VARATTN_API const char* kernel_name(const PlanConfig& config);

VARATTN_API int64_t plan_size(const PlanConfig& config);       // bytes; a function of the config alone
VARATTN_API int64_t workspace_size(const PlanConfig& config);  // bytes; likewise

// Throws Error(kPlanMismatch) naming the first field in which a plan's config differs from what a call needs.
VARATTN_API void check_plan_config(const PlanConfig& plan, const PlanConfig& call, const char* caller = "mha_varlen");

// What a status word says, one sentence a bit; "" if 0.
VARATTN_API std::string describe_status(uint32_t status);

// Planners. CPU: all pointers are host memory. CUDA: device memory, asynchronous on `stream`, no allocation or sync.
VARATTN_API void make_plan_cpu(const PlanConfig& config, const SequenceLengths& lengths, void* plan);
VARATTN_API void make_plan_cuda(const PlanConfig& config, const SequenceLengths& lengths, void* plan,
                                cudaStream_t stream);

// Attention. num_threads 0: all cores. The CUDA call is one launch on `stream`.
VARATTN_API void mha_varlen_cpu(const AttentionParams& params, int32_t num_threads = 0);
VARATTN_API void mha_varlen_cuda(const AttentionParams& params, cudaStream_t stream);

}  // namespace varattn
