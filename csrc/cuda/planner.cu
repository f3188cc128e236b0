// Launch of the device planner.
#include "core/check.h"
#include "cuda/planner_kernel.cuh"
#include "cuda/shared_memory.h"
#include "device/barrier.cuh"
#include "varattn/varattn.hpp"

namespace varattn {
namespace {

using namespace planner;

__global__ void __launch_bounds__(kThreads) plan_kernel(const __grid_constant__ PlannerParams params) {
    extern __shared__ uint4 shared[];
    auto& memory = *reinterpret_cast<SharedMemory*>(shared);
#if __CUDA_ARCH__ >= 900
    device::allow_next_kernel();
#endif
    prepare(params, memory);
#if __CUDA_ARCH__ >= 900
    // It may still write the lengths, or read the plan that was here.
    device::await_previous_kernel();
#endif
    run(params, memory);
}

}  // namespace

void make_plan_cuda(const PlanConfig& config, const SequenceLengths& lengths, void* plan, cudaStream_t stream) {
    const KernelConfig& kernel = check_plan_arguments(config, lengths, plan, DeviceType::kCuda, "plan");
    const PlannerParams params{config,          cost_model(kernel),  tile_shape(config),
                               lengths,         plan_layout(config), static_cast<char*>(plan),
                               num_ctas(config)};
    const int device = allow_shared_memory<plan_kernel>(sizeof(SharedMemory), "plan");
    int capability = 0;
    check_cuda(cudaDeviceGetAttribute(&capability, cudaDevAttrComputeCapabilityMajor, device), "plan",
               "cudaDeviceGetAttribute");
    // Starts while the kernel before runs out.
    cudaLaunchAttribute overlap{};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t launch{};
    launch.gridDim = dim3(params.num_ctas);
    launch.blockDim = dim3(kThreads);
    launch.dynamicSmemBytes = sizeof(SharedMemory);
    launch.stream = stream;
    launch.attrs = &overlap;
    launch.numAttrs = capability >= 9 ? 1 : 0;
    check_cuda(cudaLaunchKernelEx(&launch, plan_kernel, params), "plan", "launch of the planner");
}

}  // namespace varattn
