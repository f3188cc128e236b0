// check_attention_params: every bad argument is refused by name, before anything is read or written.
#include <functional>

#include "problem.h"

namespace varattn {
namespace {

using test::expect_error;

struct BadParam {
    const char* message;
    std::function<void(AttentionParams&)> change;
};

void* odd(const void* p) { return const_cast<char*>(static_cast<const char*>(p) + 2); }

// A paged problem on the CPU, in float32.
const BadParam kBadParams[] = {
    {"total_q: got -1; takes at least 0", [](auto& p) { p.total_q = -1; }},
    {"total_q: got 1000; takes at most max_total_q", [](auto& p) { p.total_q = 1000; }},
    {"num_pages: got -1; takes at least 0", [](auto& p) { p.num_pages = -1; }},
    {"page_size: got 0; takes at least 1", [](auto& p) { p.page_size = 0; }},
    {"max_pages_per_seq: got -2; takes at least 0", [](auto& p) { p.max_pages_per_seq = -2; }},
    {"block_table_stride: got -2; takes at least 0", [](auto& p) { p.block_table_stride = -2; }},
    {"block_table: got null, with page_size 16; takes a pointer", [](auto& p) { p.block_table = nullptr; }},
    {"total_k: got -1; takes at least 0", [](auto& p) { p.block_table = nullptr, p.page_size = 0, p.total_k = -1; }},
    {"q: got null; takes a pointer", [](auto& p) { p.q = nullptr; }},
    {"k: got null; takes a pointer", [](auto& p) { p.k = nullptr; }},
    {"v: got null; takes a pointer", [](auto& p) { p.v = nullptr; }},
    {"out: got null; takes a pointer", [](auto& p) { p.out = nullptr; }},
    {"plan: got null; takes a pointer", [](auto& p) { p.plan = nullptr; }},
    {"workspace: got null; takes a pointer", [](auto& p) { p.workspace = nullptr; }},
    {"q: got a pointer that is not aligned; takes a pointer to a multiple of 4 bytes", [](auto& p) { p.q = odd(p.q); }},
    {"out: got a pointer that is not aligned", [](auto& p) { p.out = odd(p.out); }},
    {"lse: got a pointer that is not aligned", [](auto& p) { p.lse = static_cast<float*>(odd(p.lse)); }},
    {"workspace: got a pointer that is not aligned; takes a pointer to a multiple of 16 bytes",
     [](auto& p) { p.workspace = odd(p.workspace); }},
    {"trace: got a pointer that is not aligned; takes a pointer to a multiple of 16 bytes",
     [](auto& p) { p.trace = odd(p.workspace); }},
    {"trace_capacity: got -1; takes at least 0", [](auto& p) { p.trace = p.workspace, p.trace_capacity = -1; }},
    {"q_row_stride: got -1; takes at least 0", [](auto& p) { p.q_row_stride = -1; }},
    {"q_head_stride: got -1; takes at least 0", [](auto& p) { p.q_head_stride = -1; }},
    {"k_page_stride: got -1; takes at least 0", [](auto& p) { p.k_page_stride = -1; }},
    {"k_row_stride: got -1; takes at least 0", [](auto& p) { p.k_row_stride = -1; }},
    {"k_head_stride: got -1; takes at least 0", [](auto& p) { p.k_head_stride = -1; }},
    {"v_page_stride: got -1; takes at least 0", [](auto& p) { p.v_page_stride = -1; }},
    {"v_row_stride: got -1; takes at least 0", [](auto& p) { p.v_row_stride = -1; }},
    {"v_head_stride: got -1; takes at least 0", [](auto& p) { p.v_head_stride = -1; }},
    {"out_row_stride: got 31; takes at least 32", [](auto& p) { p.out_row_stride = 31; }},
    {"out_head_stride: got 0; takes at least 32", [](auto& p) { p.out_head_stride = 0; }},
    {"lse_head_stride: got 3; takes at least", [](auto& p) { p.lse_head_stride = 3; }},
    {"softmax_scale: got nan; takes a finite number", [](auto& p) { p.softmax_scale = std::nanf(""); }},
    {"softmax_scale: got 0.000000; takes a finite number above 0", [](auto& p) { p.softmax_scale = 0.0f; }},
    {"softmax_scale: got -1.000000; takes a finite number above 0", [](auto& p) { p.softmax_scale = -1.0f; }},
    {"softcap: got inf; takes a finite number", [](auto& p) { p.softcap = HUGE_VALF; }},
    {"softcap: got -1.000000; takes a finite number", [](auto& p) { p.softcap = -1.0f; }},
    {"config: got a PlanConfig that this library did not make", [](auto& p) { p.config.num_heads_kv = 0; }},
    {"config: got a PlanConfig that this library did not make", [](auto& p) { p.config.kernel = 99; }},
};

class Params : public testing::Test {
protected:
    Params() : random(test::first_seed()), problem(make_spec(), random), plan(problem.config, problem.lengths()) {
        workspace.resize(workspace_size(problem.config) / sizeof(std::max_align_t) + 1);
        good = problem.params();
        good.plan = plan.data();
        good.workspace = workspace.data();
    }
    static test::ProblemSpec make_spec() {
        test::ProblemSpec spec;
        spec.options.num_heads_q = 4;
        spec.options.num_heads_kv = 2;
        spec.options.head_dim = 32;
        spec.options.dtype = DType::kFloat32;
        spec.q_lens = {3, 4};
        spec.kv_lens = {50, 60};
        spec.page_size = 16;
        return spec;
    }

    test::Random random;
    test::Problem problem;
    test::Plan plan;
    std::vector<std::max_align_t> workspace;
    AttentionParams good;
};

TEST_F(Params, EveryBadParameterIsRefusedByName) {
    EXPECT_NO_THROW(mha_varlen_cpu(good));
    for (const BadParam& bad : kBadParams) {
        AttentionParams p = good;
        bad.change(p);
        expect_error(ErrorCode::kInvalidArgument, std::string("mha_varlen: ") + bad.message,
                     [&] { mha_varlen_cpu(p); });
    }
    expect_error(ErrorCode::kInvalidArgument, "num_threads: got -1", [&] { mha_varlen_cpu(good, -1); });
}

TEST_F(Params, StridesOfDimensionsThatAreNeverSteppedAlongDoNotMatter) {
    AttentionParams p = good;
    p.num_pages = 1;
    p.k_page_stride = -77;
    EXPECT_NO_THROW(check_attention_params(p, DeviceType::kCpu));
    p.page_size = 1;
    p.v_row_stride = -77;
    EXPECT_NO_THROW(check_attention_params(p, DeviceType::kCpu));
    p.total_q = 1;
    p.out_row_stride = 0;
    EXPECT_NO_THROW(check_attention_params(p, DeviceType::kCpu));
}

TEST_F(Params, NullsAreFineWhereThereIsNothing) {
    AttentionParams p = good;
    p.total_q = p.num_pages = 0;
    p.q = p.k = p.v = nullptr;
    p.out = nullptr;
    p.lse = nullptr;
    EXPECT_NO_THROW(check_attention_params(p, DeviceType::kCpu));
}

TEST_F(Params, CudaTakesAlignedVectorsOnly) {
    PlanOptions o = problem.c_options;
    o.dtype = DType::kBFloat16;
    AttentionParams p = good;
    p.config = make_plan_config({DeviceType::kCuda, 80, 108}, o);
    alignas(16) static char memory[64];
    p.q = p.k = p.v = memory;
    p.out = memory;
    p.q_head_stride = p.k_head_stride = p.v_head_stride = p.out_head_stride = 32;
    p.q_row_stride = p.out_row_stride = 128;
    p.k_row_stride = p.v_row_stride = 64;
    p.k_page_stride = p.v_page_stride = 64 * 16;
    EXPECT_NO_THROW(check_attention_params(p, DeviceType::kCuda));
    const BadParam bad_params[] = {
        {"q: got a pointer that is not aligned; takes a pointer to a multiple of 16 bytes",
         [](auto& x) { x.q = memory + 8; }},
        {"v: got a pointer that is not aligned", [](auto& x) { x.v = memory + 2; }},
        {"q_row_stride: got 132; takes a multiple of 8 elements (16 bytes)", [](auto& x) { x.q_row_stride = 132; }},
        {"k_page_stride: got 1025; takes a multiple of 8", [](auto& x) { x.k_page_stride = 1025; }},
        {"v_head_stride: got 36; takes a multiple of 8", [](auto& x) { x.v_head_stride = 36; }},
        {"out_head_stride: got 33; takes a multiple of 8", [](auto& x) { x.out_head_stride = 33; }},
    };
    for (const BadParam& bad : bad_params) {
        AttentionParams broken = p;
        bad.change(broken);
        expect_error(ErrorCode::kInvalidArgument, std::string("mha_varlen: ") + bad.message,
                     [&] { check_attention_params(broken, DeviceType::kCuda); });
    }
    expect_error(ErrorCode::kInvalidArgument,
                 "config: got one made for the kernel portable_d64; takes a config made for the CPU",
                 [&] { mha_varlen_cpu(p); });
    expect_error(ErrorCode::kInvalidArgument,
                 "config: got one made for the kernel cpu; takes a config made for a CUDA device",
                 [&] { check_attention_params(good, DeviceType::kCuda); });
}

}  // namespace
}  // namespace varattn
