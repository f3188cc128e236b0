#include "torch/options.h"

#include "torch/device.h"

namespace varattn::binding {

PlanConfig make_config(const char* function, const Device& device, const Capacity& capacity, const Heads& heads,
                       const Mask& mask, const Schedule& schedule) {
    PlanOptions o;
    o.num_heads_q = to_int32(function, "num_heads_q", heads.num_heads_q);
    o.num_heads_kv = to_int32(function, "num_heads_kv", heads.num_heads_kv);
    o.head_dim = to_int32(function, "head_dim", heads.head_dim);
    // To make_plan_config it would mean head_dim.
    if (heads.head_dim_v == 0 && heads.head_dim != 0) refuse(function, "head_dim_v", "0", "a multiple of 8");
    o.head_dim_v = to_int32(function, "head_dim_v", heads.head_dim_v);
    o.dtype = to_dtype(function, "dtype", heads.dtype);
    o.causal = mask.causal;
    if (mask.window_size.size() != 2)
        refuse(function, "window_size", std::to_string(mask.window_size.size()) + " numbers", "(left, right)");
    o.window_left = to_int32(function, "window_size[0]", mask.window_size[0]);
    o.window_right = to_int32(function, "window_size[1]", mask.window_size[1]);
    o.num_splits = to_int32(function, "num_splits", schedule.num_splits);
    o.batch_invariant = schedule.batch_invariant;
    o.sm_margin = to_int32(function, "sm_margin", schedule.sm_margin);
    o.max_seqs = to_int32(function, "max_seqs", capacity.max_seqs);
    o.max_total_q = to_int32(function, "max_total_q", capacity.max_total_q);
    return make_plan_config(device, o, function);
}

void make_plan(const PlanConfig& config, const Lengths& lengths, const Tensor& plan) {
    auto pointer = [](const Tensor& t) { return static_cast<const int32_t*>(address_of(t)); };
    SequenceLengths in{};
    in.cu_seqlens_q = pointer(lengths.cu_seqlens_q);
    // An empty batch has empty tensors, whose address is null: any other address says which of them are given.
    if (lengths.seqused_k) in.seqused_k = config.max_seqs ? pointer(*lengths.seqused_k) : in.cu_seqlens_q;
    if (lengths.cu_seqlens_k) in.cu_seqlens_k = pointer(*lengths.cu_seqlens_k);
    if (plan.is_cuda())
        make_plan_cuda(config, in, plan.data_ptr(), current_stream(plan.get_device_index()));
    else
        make_plan_cpu(config, in, plan.data_ptr());
}

}  // namespace varattn::binding
