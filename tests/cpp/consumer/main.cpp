// One sequence of one query token and two keys, in C++: the output is the mean of two equal-scored values.
#include <varattn/varattn.hpp>

#include <cmath>
#include <cstdio>
#include <new>
#include <vector>

int main() {
    using namespace varattn;
    PlanOptions options;
    options.num_heads_q = options.num_heads_kv = 1;
    options.head_dim = 8;
    options.dtype = DType::kFloat32;
    options.causal = true;
    options.max_seqs = 1;
    options.max_total_q = 1;
    const PlanConfig config = make_plan_config(cpu_device(), options);

    const std::vector<int32_t> cu_seqlens_q = {0, 1}, cu_seqlens_k = {0, 2};
    void* plan = ::operator new(plan_size(config));
    std::vector<double> workspace(workspace_size(config) / sizeof(double) + 1);
    make_plan_cpu(config, {cu_seqlens_q.data(), nullptr, cu_seqlens_k.data()}, plan);

    std::vector<float> q(8, 0.0f), k(16, 1.0f), v(16, 1.0f), out(8), lse(1);
    for (int d = 8; d < 16; ++d)
        v[d] = 3.0f;
    AttentionParams params{};
    params.config = config;
    params.q = q.data();
    params.k = k.data();
    params.v = v.data();
    params.out = out.data();
    params.lse = lse.data();
    params.k_row_stride = params.v_row_stride = 8;
    params.total_q = 1;
    params.total_k = 2;
    params.softmax_scale = 1.0f;
    params.plan = plan;
    params.workspace = workspace.data();
    mha_varlen_cpu(params);
    ::operator delete(plan);

    const bool right = std::fabs(out[0] - 2.0f) < 1e-5f && std::fabs(lse[0] - std::log(2.0f)) < 1e-5f;
    std::printf("%s: out %g, lse %g: %s\n", kernel_name(config), out[0], lse[0], right ? "right" : "WRONG");
    return right ? 0 : 1;
}
