// Launch of the device planner.
#include <atomic>

#include "core/check.h"
#include "cuda/cuda_check.h"
#include "cuda/planner_kernel.cuh"
#include "varattn/varattn.hpp"

namespace varattn {
namespace {

using namespace planner;

__global__ void __launch_bounds__(kThreads) plan_kernel(const __grid_constant__ PlannerParams params) {
    extern __shared__ uint4 shared[];
    Planner(params, *reinterpret_cast<SharedMemory*>(shared)).run();
}

// Once for each device.
void prepare_kernel() {
    static std::atomic<uint64_t> ready{0};
    int device = 0;
    check_cuda(cudaGetDevice(&device), "plan", "cudaGetDevice");
    const uint64_t bit = uint64_t{1} << (device % 64);
    if (ready.load(std::memory_order_relaxed) & bit) return;
    check_cuda(cudaFuncSetAttribute(plan_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(SharedMemory)),
               "plan", "cudaFuncSetAttribute");
    ready.fetch_or(bit, std::memory_order_relaxed);
}

}  // namespace

void make_plan_cuda(const PlanConfig& config, const SequenceLengths& lengths, void* plan, cudaStream_t stream) {
    const KernelConfig& kernel = check_plan_arguments(config, lengths, plan, DeviceType::kCuda, "plan");
    PlannerParams params{config,  cost_model(kernel),  tile_shape(config),
                         lengths, plan_layout(config), static_cast<char*>(plan)};
    prepare_kernel();
    plan_kernel<<<num_ctas(config), kThreads, sizeof(SharedMemory), stream>>>(params);
    check_cuda(cudaGetLastError(), "plan", "launch of the planner");
}

}  // namespace varattn
