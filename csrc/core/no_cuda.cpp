// Stands in for csrc/cuda in a build without CUDA.
#include "varattn/varattn.hpp"

namespace varattn {
namespace {

[[noreturn]] void no_cuda(const char* function) {
    throw Error(ErrorCode::kUnsupported,
                std::string(function) +
                    ": device: got CUDA; this build of varattn has no CUDA part (build it with "
                    "the CUDA toolkit installed: cmake -DVARATTN_CUDA=ON)");
}

}  // namespace

Device cuda_device(int32_t) { no_cuda("cuda_device"); }
void make_plan_cuda(const PlanConfig&, const SequenceLengths&, void*, cudaStream_t) { no_cuda("plan"); }
void mha_varlen_cuda(const AttentionParams&, cudaStream_t) { no_cuda("mha_varlen"); }

}  // namespace varattn
