// The scalar arguments that the ops share, as PyTorch passes them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "torch/check.h"
#include "varattn/varattn.hpp"

namespace varattn::binding {

struct Capacity {
    int64_t max_seqs, max_total_q;
};

struct Heads {
    int64_t num_heads_q, num_heads_kv, head_dim, head_dim_v;
    ScalarType dtype;
};

struct Mask {
    bool causal;
    const std::vector<int64_t>& window_size;  // (left, right)
};

struct Schedule {
    int64_t num_splits;
    bool batch_invariant;
    int64_t sm_margin;
};

PlanConfig make_config(const char* function, const Device& device, const Capacity& capacity, const Heads& heads,
                       const Mask& mask, const Schedule& schedule);

// Plans on the device of the lengths: on the current stream of a CUDA device, at once on the CPU.
struct Lengths {
    const Tensor& cu_seqlens_q;
    const std::optional<Tensor>& seqused_k;
    const std::optional<Tensor>& cu_seqlens_k;
};
void make_plan(const PlanConfig& config, const Lengths& lengths, const Tensor& plan);

}  // namespace varattn::binding
