// Launches of the Hopper kernel: which instance.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/device_info.h"
#include "sm90/launch_params.h"

namespace varattn::sm90 {
namespace {

// The driver's encoder is looked up at run time, so that nothing links libcuda.
EncodeTiled encode_tiled() {
    static const EncodeTiled function = [] {
        void* found = nullptr;
        cudaDriverEntryPointQueryResult result;
        check_cuda(
            cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
            "mha_varlen", "cudaGetDriverEntryPointByVersion");
        return reinterpret_cast<EncodeTiled>(found);
    }();
    return function;
}

template <class T, int kDim>
void launch_dim(const LaunchParams& p, cudaStream_t stream) {
    if (folds_segments(p.a.config))
        launch_instance<T, kDim, true>(p, stream);
    else
        launch_instance<T, kDim, false>(p, stream);
}
template <class T>
void launch_for(const LaunchParams& p, cudaStream_t stream) {
    switch (p.a.config.kernel) {
        case kKernelSm90D64: return launch_dim<T, 64>(p, stream);
        case kKernelSm90D128: return launch_dim<T, 128>(p, stream);
        case kKernelSm90D256: return launch_dim<T, 256>(p, stream);
    }
    throw Error(ErrorCode::kInternal, "mha_varlen: config.kernel: got a kernel that is not of sm90");
}

}  // namespace

void launch(const AttentionParams& params, cudaStream_t stream) {
    if (params.config.num_ctas == 0 || params.total_q == 0) return;
    const LaunchParams p = make_launch_params(params, encode_tiled());
    if (params.config.dtype == static_cast<int32_t>(DType::kBFloat16))
        launch_for<__nv_bfloat16>(p, stream);
    else
        launch_for<__half>(p, stream);
}

}  // namespace varattn::sm90
