// One call of mha_varlen: checked on construction, then given its outputs, then run.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "torch/check.h"
#include "varattn/varattn.hpp"

namespace varattn::binding {

struct AttentionTensors {
    Tensor q, k, v, cu_seqlens_q;
    std::optional<Tensor> cu_seqlens_k, seqused_k, block_table, plan, workspace, sinks, trace;
};

struct AttentionScalars {
    std::optional<double> softmax_scale;
    bool causal;
    std::vector<int64_t> window_size;
    double softcap;
    int64_t num_splits;
    bool batch_invariant;
    int64_t sm_margin;
    std::optional<int64_t> max_total_q;  // capacity that the plan was made for; none: the rows of q
    bool leave_padding;
};

class AttentionCall {
public:
    AttentionCall(const AttentionTensors& tensors, const AttentionScalars& scalars);

    std::vector<int64_t> out_shape() const;
    std::vector<int64_t> lse_shape() const;
    void set_outputs(const Tensor& out, const std::optional<Tensor>& lse);
    void run();  // under a device guard; plan, workspace and float32 sinks are made here where they are not given

private:
    void set_trace();

    const AttentionTensors& t;
    AttentionParams p{};
};

}  // namespace varattn::binding
