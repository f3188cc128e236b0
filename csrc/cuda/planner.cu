// Launch of the device planner.
#include "core/check.h"
#include "cuda/planner_kernel.cuh"
#include "cuda/shared_memory.h"
#include "varattn/varattn.hpp"

namespace varattn {
namespace {

using namespace planner;

__global__ void __launch_bounds__(kThreads) plan_kernel(const __grid_constant__ PlannerParams params) {
    extern __shared__ uint4 shared[];
    Planner(params, *reinterpret_cast<SharedMemory*>(shared)).run();
}

}  // namespace

void make_plan_cuda(const PlanConfig& config, const SequenceLengths& lengths, void* plan, cudaStream_t stream) {
    const KernelConfig& kernel = check_plan_arguments(config, lengths, plan, DeviceType::kCuda, "plan");
    PlannerParams params{config,  cost_model(kernel),  tile_shape(config),
                         lengths, plan_layout(config), static_cast<char*>(plan)};
    allow_shared_memory<plan_kernel>(sizeof(SharedMemory), "plan");
    plan_kernel<<<num_ctas(config), kThreads, sizeof(SharedMemory), stream>>>(params);
    check_cuda(cudaGetLastError(), "plan", "launch of the planner");
}

}  // namespace varattn
