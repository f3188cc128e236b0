// The ops of torch.ops.varattn: schemas, kernels for CPU and CUDA. Bound to PyTorch's stable ABI; no Python symbols.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>
#include <tuple>

#include "torch/attention.h"
#include "torch/device.h"
#include "torch/options.h"

namespace varattn::binding {
namespace {

using OptionalTensor = std::optional<Tensor>;
using Window = std::vector<int64_t>;
using torch::stable::accelerator::DeviceGuard;

// CUDA: makes the tensor's device current for the scope.
std::optional<DeviceGuard> guard_device_of(const Tensor& t) {
    std::optional<DeviceGuard> guard;
    if (t.is_cuda()) guard.emplace(t.get_device_index());
    return guard;
}

// ---- mha_varlen ------------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> mha_varlen(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, OptionalTensor cu_seqlens_k,
                                      OptionalTensor seqused_k, OptionalTensor block_table, OptionalTensor plan,
                                      OptionalTensor workspace, std::optional<double> softmax_scale, bool causal,
                                      Window window_size, double softcap, OptionalTensor sinks, int64_t num_splits,
                                      bool batch_invariant, int64_t sm_margin, std::optional<int64_t> max_total_q,
                                      bool leave_padding, OptionalTensor trace) {
    auto guard = guard_device_of(q);
    AttentionTensors tensors{q,           k,    v,         cu_seqlens_q, cu_seqlens_k, seqused_k,
                             block_table, plan, workspace, sinks,        trace};
    AttentionCall call(tensors, {softmax_scale, causal, window_size, softcap, num_splits, batch_invariant, sm_margin,
                                 max_total_q, leave_padding});
    Tensor out = torch::stable::new_empty(q, call.out_shape());
    Tensor lse = torch::stable::new_empty(q, call.lse_shape(), ScalarType::Float);
    call.set_outputs(out, lse);
    call.run();
    return {out, lse};
}

void mha_varlen_out(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, OptionalTensor cu_seqlens_k,
                    OptionalTensor seqused_k, OptionalTensor block_table, OptionalTensor plan, OptionalTensor workspace,
                    std::optional<double> softmax_scale, bool causal, Window window_size, double softcap,
                    OptionalTensor sinks, int64_t num_splits, bool batch_invariant, int64_t sm_margin,
                    std::optional<int64_t> max_total_q, bool leave_padding, OptionalTensor trace, Tensor out,
                    OptionalTensor lse) {
    auto guard = guard_device_of(q);
    AttentionTensors tensors{q,           k,    v,         cu_seqlens_q, cu_seqlens_k, seqused_k,
                             block_table, plan, workspace, sinks,        trace};
    AttentionCall call(tensors, {softmax_scale, causal, window_size, softcap, num_splits, batch_invariant, sm_margin,
                                 max_total_q, leave_padding});
    call.set_outputs(out, lse);
    call.run();
}

// ---- plan ------------------------------------------------------------------------------------------------------------

PlanConfig check_plan_call(const Tensor& cu_seqlens_q, const OptionalTensor& seqused_k,
                           const OptionalTensor& cu_seqlens_k, int64_t max_total_q, const Heads& heads,
                           const Mask& mask, const Schedule& schedule) {
    Arg q{"plan", "cu_seqlens_q", cu_seqlens_q};
    check_rank(q, 1, "(num_seqs + 1,)");
    if (cu_seqlens_q.size(0) == 0) refuse(q, "shape (0,)", "(num_seqs + 1,)");
    check_index_vector(q, cu_seqlens_q, "cu_seqlens_q", -1, "(num_seqs + 1,)");
    int64_t num_seqs = cu_seqlens_q.size(0) - 1;
    if (!seqused_k && !cu_seqlens_k)
        refuse("plan", "seqused_k", "None", "the key lengths (num_seqs,), or else give cu_seqlens_k");
    if (seqused_k)
        check_index_vector({"plan", "seqused_k", *seqused_k}, cu_seqlens_q, "cu_seqlens_q", num_seqs, "(num_seqs,)");
    if (cu_seqlens_k)
        check_index_vector({"plan", "cu_seqlens_k", *cu_seqlens_k}, cu_seqlens_q, "cu_seqlens_q", num_seqs + 1,
                           "(num_seqs + 1,)");
    const Device device = device_at(cu_seqlens_q.is_cuda(), cu_seqlens_q.get_device_index());
    return make_config("plan", device, {num_seqs, max_total_q}, heads, mask, schedule);
}

Tensor plan(Tensor cu_seqlens_q, OptionalTensor seqused_k, OptionalTensor cu_seqlens_k, int64_t max_total_q,
            int64_t num_heads_q, int64_t num_heads_kv, int64_t head_dim, std::optional<int64_t> head_dim_v,
            ScalarType dtype, bool causal, Window window_size, int64_t num_splits, bool batch_invariant,
            int64_t sm_margin) {
    auto guard = guard_device_of(cu_seqlens_q);
    Heads heads{num_heads_q, num_heads_kv, head_dim, head_dim_v.value_or(head_dim), dtype};
    PlanConfig config = check_plan_call(cu_seqlens_q, seqused_k, cu_seqlens_k, max_total_q, heads,
                                        {causal, window_size}, {num_splits, batch_invariant, sm_margin});
    int64_t bytes = plan_size(config);
    // Zeroed, so that equal plans are equal in every byte, those past the last item too.
    Tensor out = torch::stable::new_zeros(cu_seqlens_q, {&bytes, 1}, ScalarType::Byte);
    make_plan(config, {cu_seqlens_q, seqused_k, cu_seqlens_k}, out);
    return out;
}

void plan_out(Tensor cu_seqlens_q, OptionalTensor seqused_k, OptionalTensor cu_seqlens_k, int64_t max_total_q,
              int64_t num_heads_q, int64_t num_heads_kv, int64_t head_dim, std::optional<int64_t> head_dim_v,
              ScalarType dtype, bool causal, Window window_size, int64_t num_splits, bool batch_invariant,
              int64_t sm_margin, Tensor out) {
    auto guard = guard_device_of(cu_seqlens_q);
    Heads heads{num_heads_q, num_heads_kv, head_dim, head_dim_v.value_or(head_dim), dtype};
    PlanConfig config = check_plan_call(cu_seqlens_q, seqused_k, cu_seqlens_k, max_total_q, heads,
                                        {causal, window_size}, {num_splits, batch_invariant, sm_margin});
    check_buffer({"plan", "out", out}, cu_seqlens_q, "cu_seqlens_q", plan_size(config), "plan_size()");
    make_plan(config, {cu_seqlens_q, seqused_k, cu_seqlens_k}, out);
}

// ---- sizes -----------------------------------------------------------------------------------------------------------

Device device_of_argument(const char* function, const torch::stable::Device& device) {
    if (device.is_cpu()) return device_at(false, 0);
    if (!device.is_cuda()) refuse(function, "device", "another kind of device", "cpu or cuda");
    return device_at(true, device.has_index() ? device.index() : torch::stable::accelerator::getCurrentDeviceIndex());
}

int64_t plan_size_op(int64_t max_seqs, int64_t max_total_q, int64_t num_heads_q, int64_t num_heads_kv, int64_t head_dim,
                     std::optional<int64_t> head_dim_v, ScalarType dtype, bool causal, Window window_size,
                     int64_t num_splits, bool batch_invariant, int64_t sm_margin, torch::stable::Device device) {
    Heads heads{num_heads_q, num_heads_kv, head_dim, head_dim_v.value_or(head_dim), dtype};
    return plan_size(make_config("plan_size", device_of_argument("plan_size", device), {max_seqs, max_total_q}, heads,
                                 {causal, window_size}, {num_splits, batch_invariant, sm_margin}));
}

int64_t workspace_size_op(int64_t max_seqs, int64_t max_total_q, int64_t num_heads_q, int64_t num_heads_kv,
                          int64_t head_dim, std::optional<int64_t> head_dim_v, ScalarType dtype, bool causal,
                          Window window_size, int64_t num_splits, bool batch_invariant, int64_t sm_margin,
                          torch::stable::Device device) {
    Heads heads{num_heads_q, num_heads_kv, head_dim, head_dim_v.value_or(head_dim), dtype};
    return workspace_size(make_config("workspace_size", device_of_argument("workspace_size", device),
                                      {max_seqs, max_total_q}, heads, {causal, window_size},
                                      {num_splits, batch_invariant, sm_margin}));
}

std::string describe_status_op(int64_t status) { return describe_status(static_cast<uint32_t>(status)); }

// ---- schemas ---------------------------------------------------------------------------------------------------------

constexpr const char* kAttentionArgs =
    "Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, *, Tensor? cu_seqlens_k=None, Tensor? seqused_k=None, "
    "Tensor? block_table=None, Tensor(a!)? plan=None, Tensor(b!)? workspace=None, float? softmax_scale=None, "
    "bool causal=False, int[2] window_size=[-1, -1], float softcap=0.0, Tensor? sinks=None, int num_splits=0, "
    "bool batch_invariant=False, int sm_margin=0, SymInt? max_total_q=None, bool leave_padding=False, "
    "Tensor(e!)? trace=None";
constexpr const char* kPlanArgs =
    "Tensor cu_seqlens_q, *, Tensor? seqused_k=None, Tensor? cu_seqlens_k=None, SymInt max_total_q, "
    "int num_heads_q, int num_heads_kv, int head_dim, int? head_dim_v=None, ScalarType dtype, bool causal=False, "
    "int[2] window_size=[-1, -1], int num_splits=0, bool batch_invariant=False, int sm_margin=0";
constexpr const char* kSizeArgs =
    "int max_seqs, int max_total_q, int num_heads_q, int num_heads_kv, int head_dim, int? head_dim_v=None, *, "
    "ScalarType dtype, bool causal=False, int[2] window_size=[-1, -1], int num_splits=0, "
    "bool batch_invariant=False, int sm_margin=0, Device device";

std::string schema(const char* name, const char* args, const char* rest) {
    return std::string(name) + "(" + args + rest;
}

}  // namespace
}  // namespace varattn::binding

using namespace varattn::binding;

STABLE_TORCH_LIBRARY(varattn, m) {
    m.def(schema("mha_varlen", kAttentionArgs, ") -> (Tensor, Tensor)").c_str());
    m.def(schema("mha_varlen.out", kAttentionArgs, ", Tensor(c!) out, Tensor(d!)? lse=None) -> ()").c_str());
    m.def(schema("plan", kPlanArgs, ") -> Tensor").c_str());
    m.def(schema("plan.out", kPlanArgs, ", Tensor(a!) out) -> ()").c_str());
    m.def(schema("plan_size", kSizeArgs, ") -> int").c_str());
    m.def(schema("workspace_size", kSizeArgs, ") -> int").c_str());
    m.def("describe_status(int status) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(varattn, CPU, m) {
    m.impl("mha_varlen", TORCH_BOX(&mha_varlen));
    m.impl("mha_varlen.out", TORCH_BOX(&mha_varlen_out));
    m.impl("plan", TORCH_BOX(&plan));
    m.impl("plan.out", TORCH_BOX(&plan_out));
}

STABLE_TORCH_LIBRARY_IMPL(varattn, CUDA, m) {
    m.impl("mha_varlen", TORCH_BOX(&mha_varlen));
    m.impl("mha_varlen.out", TORCH_BOX(&mha_varlen_out));
    m.impl("plan", TORCH_BOX(&plan));
    m.impl("plan.out", TORCH_BOX(&plan_out));
}

STABLE_TORCH_LIBRARY_IMPL(varattn, CompositeExplicitAutograd, m) {
    m.impl("plan_size", TORCH_BOX(&plan_size_op));
    m.impl("workspace_size", TORCH_BOX(&workspace_size_op));
    m.impl("describe_status", TORCH_BOX(&describe_status_op));
}
