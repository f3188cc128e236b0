// Launch of the device planner.
#include "core/check.h"
#include "core/costs.h"
#include "cuda/launch.h"
#include "cuda/planner_kernel.cuh"
#include "device/barrier.cuh"
#include "varattn/varattn.hpp"

namespace varattn {
namespace {

using namespace planner;

__global__ void __launch_bounds__(kThreads, 1) plan_kernel(const __grid_constant__ PlannerParams params) {
    extern __shared__ uint4 shared[];
    // The address, kept in a register: nvcc would derive it anew in many places, from a special register that is slow.
    uint32_t address;
    asm volatile("mov.u32 %0, %1;" : "=r"(address) : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))));
    auto& memory = *static_cast<SharedMemory*>(__cvta_shared_to_generic(address));
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
    const int device = current_device_index("plan");
    const bool is_hopper = cuda_device(device).compute_capability >= 90;  // or newer
    const PlannerParams params{config,
                               cost_model(kernel.id, cuda_device_name(device)),
                               tile_shape(config),
                               lengths,
                               plan_layout(config),
                               static_cast<char*>(plan),
                               num_ctas(config, is_hopper)};
    launch_kernel<plan_kernel>(params, {params.num_ctas, kThreads, sizeof(SharedMemory), is_hopper, is_hopper}, stream,
                               "plan");
}

}  // namespace varattn
