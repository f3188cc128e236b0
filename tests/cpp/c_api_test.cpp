// The C API does what the C++ API does, and reports instead of throwing. (tests/cpp/consumer calls it from C.)
#include "varattn/varattn.h"

#include "problem.h"

namespace varattn {
namespace {

varattn_plan_options good_options() {
    varattn_plan_options o = varattn_default_options();
    o.num_heads_q = 8;
    o.num_heads_kv = 2;
    o.head_dim = 64;
    o.max_seqs = 3;
    o.max_total_q = 30;
    return o;
}

TEST(CApi, ConfigsAndSizesAreThoseOfCpp) {
    const varattn_device device = varattn_cpu_device();
    varattn_plan_options o = good_options();
    o.causal = 1;
    o.window_left = 77;
    o.num_splits = 9;
    o.sm_margin = 2;
    o.head_dim_v = 32;
    varattn_plan_config config;
    ASSERT_EQ(varattn_make_plan_config(&device, &o, &config), VARATTN_OK) << varattn_last_error();

    PlanOptions cpp;
    cpp.num_heads_q = 8, cpp.num_heads_kv = 2, cpp.head_dim = 64, cpp.head_dim_v = 32, cpp.causal = true;
    cpp.window_left = 77, cpp.num_splits = 9, cpp.sm_margin = 2, cpp.max_seqs = 3, cpp.max_total_q = 30;
    const PlanConfig want = make_plan_config(cpu_device(), cpp);
    EXPECT_EQ(std::memcmp(&config, &want, sizeof want), 0);

    int64_t bytes = 0;
    EXPECT_EQ(varattn_plan_size(&config, &bytes), VARATTN_OK);
    EXPECT_EQ(bytes, plan_size(want));
    EXPECT_EQ(varattn_workspace_size(&config, &bytes), VARATTN_OK);
    EXPECT_EQ(bytes, workspace_size(want));
}

TEST(CApi, DefaultsAreThoseOfCpp) {
    const varattn_plan_options c = varattn_default_options();
    const PlanOptions cpp;
    EXPECT_EQ(c.dtype, static_cast<int32_t>(cpp.dtype));
    EXPECT_EQ(c.window_left, cpp.window_left);
    EXPECT_EQ(c.window_right, cpp.window_right);
    EXPECT_EQ(c.num_splits, cpp.num_splits);
    EXPECT_EQ(c.causal, cpp.causal);
}

TEST(CApi, ErrorsHaveCodesAndMessages) {
    const varattn_device device = varattn_cpu_device();
    varattn_plan_options o = good_options();
    varattn_plan_config config, other;
    ASSERT_EQ(varattn_make_plan_config(&device, &o, &config), VARATTN_OK);
    auto expect = [](varattn_error_code got, varattn_error_code want, const std::string& message) {
        EXPECT_EQ(got, want);
        EXPECT_NE(std::string(varattn_last_error()).find(message), std::string::npos) << varattn_last_error();
    };
    expect(varattn_make_plan_config(nullptr, &o, &other), VARATTN_INVALID_ARGUMENT,
           "make_plan_config: device: got null");
    expect(varattn_make_plan_config(&device, nullptr, &other), VARATTN_INVALID_ARGUMENT, "options: got null");
    expect(varattn_make_plan_config(&device, &o, nullptr), VARATTN_INVALID_ARGUMENT, "config: got null");
    o.head_dim = 1000;
    expect(varattn_make_plan_config(&device, &o, &other), VARATTN_UNSUPPORTED,
           "head_dim: got 1000; takes a multiple of 8 up to 512");
    other = config;
    other.num_heads_q = 4;
    expect(varattn_check_plan_config(&config, &other), VARATTN_PLAN_MISMATCH,
           "num_heads_q: got 8; takes a plan made for 4");
    expect(varattn_plan_size(&config, nullptr), VARATTN_INVALID_ARGUMENT, "plan_size: bytes: got null");
    expect(varattn_make_plan_cpu(&config, nullptr, nullptr), VARATTN_INVALID_ARGUMENT, "plan: lengths: got null");
    expect(varattn_mha_varlen_cpu(nullptr, 0), VARATTN_INVALID_ARGUMENT, "mha_varlen: params: got null");
    expect(varattn_mha_varlen_cuda(nullptr, nullptr), VARATTN_INVALID_ARGUMENT, "mha_varlen: params: got null");
    expect(varattn_cuda_device(0, nullptr), VARATTN_INVALID_ARGUMENT, "cuda_device: device: got null");
    varattn_device none;
    EXPECT_NE(varattn_cuda_device(-1, &none), VARATTN_OK);
}

TEST(CApi, DescribesStatusWithinTheCapacity) {
    const std::string all = describe_status(kStatusPageId);
    char text[12];
    EXPECT_EQ(varattn_describe_status(kStatusPageId, nullptr, 0), all.size());
    EXPECT_EQ(varattn_describe_status(kStatusPageId, text, sizeof text), all.size());
    EXPECT_EQ(std::string(text), all.substr(0, sizeof text - 1));
    EXPECT_EQ(varattn_describe_status(0, text, sizeof text), 0u);
    EXPECT_STREQ(text, "");
}

TEST(CApi, AttendsLikeCpp) {
    test::Random random(test::first_seed());
    test::ProblemSpec spec;
    spec.options.num_heads_q = 4;
    spec.options.num_heads_kv = 2;
    spec.options.head_dim = 24;
    spec.options.dtype = DType::kFloat16;
    spec.q_lens = {3, 40, 1};
    spec.kv_lens = {300, 50, 2000};
    spec.page_size = 5;
    test::Problem problem(spec, random);
    const test::Answer want = problem.attend(2);
    const std::vector<uint8_t> want_bytes = problem.out.bytes();

    varattn_plan_config config;
    std::memcpy(&config, &problem.config, sizeof config);
    const SequenceLengths cpp = problem.lengths();
    const varattn_lengths lengths{cpp.cu_seqlens_q, cpp.seqused_k, cpp.cu_seqlens_k};
    test::Buffer plan(plan_size(problem.config), 0), workspace(workspace_size(problem.config), 0);
    ASSERT_EQ(varattn_make_plan_cpu(&config, &lengths, plan.data()), VARATTN_OK) << varattn_last_error();
    AttentionParams params = problem.params();
    params.plan = plan.data();
    params.workspace = workspace.data();
    varattn_attention_params c_params;
    std::memcpy(&c_params, &params, sizeof params);
    std::memset(problem.out.data(), 0xff, want_bytes.size());
    ASSERT_EQ(varattn_mha_varlen_cpu(&c_params, 3), VARATTN_OK) << varattn_last_error();
    EXPECT_EQ(problem.out.bytes(), want_bytes);
    EXPECT_STRNE(varattn_version(), "");
}

}  // namespace
}  // namespace varattn
