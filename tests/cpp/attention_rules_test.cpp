// What is defined where nothing is computed: empty rows, padding, hostile tables, foreign plans; and who may affect whom.
#include "problem.h"

namespace varattn {
namespace {

using test::Answer;
using test::Plan;
using test::Problem;
using test::ProblemSpec;
using test::Random;

constexpr double kNothing = -std::numeric_limits<double>::infinity();

class AttentionRules : public testing::Test {
protected:
    AttentionRules() {
        RecordProperty("seed", std::to_string(test::first_seed()));
        spec.options.num_heads_q = 4;
        spec.options.num_heads_kv = 2;
        spec.options.head_dim = 32;
        spec.options.dtype = DType::kFloat32;
        spec.options.causal = true;
        spec.q_lens = {3, 1, 0, 70};
        spec.kv_lens = {40, 500, 9, 200};
        spec.page_size = 16;
    }

    // Rows [begin, end) of every head are 0, with this LSE.
    static void expect_rows(const Problem& p, const Answer& answer, int32_t begin, int32_t end, double lse) {
        const int64_t width = int64_t{p.c_options.num_heads_q} * p.c_options.head_dim_v;
        for (int64_t i = begin * width; i < end * width; ++i)
            EXPECT_EQ(answer.out[i], 0.0) << i;
        for (int32_t h = 0; h < p.c_options.num_heads_q; ++h)
            for (int32_t row = begin; row < end; ++row)
                EXPECT_EQ(answer.lse[int64_t{h} * (answer.lse.size() / p.c_options.num_heads_q) + row], lse) << row;
    }

    Random random{test::first_seed()};
    ProblemSpec spec;
};

TEST_F(AttentionRules, QueriesWithoutKeysGiveZeroAndMinusInfinity) {
    spec.q_lens = {5, 2, 6};
    spec.kv_lens = {0, 100, 4};  // the first two rows of the last see nothing
    Problem p(spec, random);
    const Answer answer = p.attend(2);
    expect_rows(p, answer, 0, 5, kNothing);
    expect_rows(p, answer, 7, 9, kNothing);
    p.expect_close(answer, p.reference());
}

TEST_F(AttentionRules, ACacheWithoutPagesHasNoKeys) {
    Problem p(spec, random);
    test::Plan plan(p.config, p.lengths());
    AttentionParams params = p.params();
    params.num_pages = 0;
    params.k = params.v = nullptr;
    expect_rows(p, p.attend(params, plan, 2, kStatusKeysPastEnd), 0, 74, kNothing);
}

TEST_F(AttentionRules, ASinkAloneGivesZeroAndItself) {
    spec.q_lens = {5};
    spec.kv_lens = {0};
    spec.with_sinks = true;
    Problem p(spec, random);
    p.sinks.assign(4, 1.5f);
    expect_rows(p, p.attend(1), 0, 5, 1.5);
    p.sinks.assign(4, -std::numeric_limits<float>::infinity());
    expect_rows(p, p.attend(1), 0, 5, kNothing);
}

TEST_F(AttentionRules, SinksCountOnceWhateverTheSplits) {
    spec.q_lens = {1};
    spec.kv_lens = {4000};
    spec.with_sinks = true;
    for (int32_t splits : {1, 2, 5, 256}) {
        spec.options.num_splits = splits;
        Problem p(spec, random);
        p.expect_close(p.attend(2), p.reference());
        EXPECT_EQ(p.num_split_tiles > 0, splits > 1);
    }
}

TEST_F(AttentionRules, PaddingRowsAreWrittenUnlessAskedNotTo) {
    spec.rows_before = 2;
    spec.rows_after = 7;
    Problem p(spec, random);
    const Answer answer = p.attend(2);
    expect_rows(p, answer, 0, 2, kNothing);
    expect_rows(p, answer, 76, 83, kNothing);
    p.expect_close(answer, p.reference());

    Plan plan(p.config, p.lengths());
    AttentionParams params = p.params();
    params.leave_padding = 1;
    const Answer left = p.attend(params, plan, 2, 0);
    for (int32_t row = 0; row < 83; ++row) {
        const bool padding = row < 2 || row >= 76;
        EXPECT_EQ(left.lse[row] == Problem::kUntouched, padding);
        EXPECT_EQ(std::isnan(left.out[row * 128]), padding);
    }
}

TEST_F(AttentionRules, KeysPastTheBlockTableAreAbsentAndTheDiagonalStays) {
    Problem p(spec, random);
    Plan plan(p.config, p.lengths());
    AttentionParams params = p.params();
    params.max_pages_per_seq = 10;  // 160 of the last sequence's 200 keys, and of the second one's 500
    const Answer got = p.attend(params, plan, 2, kStatusKeysPastEnd);

    // The reference: row t of the last sequence sees keys up to 130 + t, but never more than 160. A sequence cut to 160
    // keys whose queries are 40 fewer has the same diagonals.
    ProblemSpec cut = spec;
    cut.q_lens = {3, 1, 0, 30};
    cut.kv_lens = {40, 160, 9, 160};
    Problem q(cut, random);
    q.q = p.q, q.k = p.k, q.v = p.v, q.out = p.out;
    q.block_table = p.block_table, q.table_stride = p.table_stride, q.num_pages = p.num_pages;
    const Answer want = q.reference();
    const size_t rows_of_cut = size_t{34} * 4 * 32;
    for (size_t i = 0; i < rows_of_cut; ++i)
        ASSERT_NEAR(got.out[i], want.out[i], 1e-4) << i;
}

TEST_F(AttentionRules, KeysPastTotalKAreAbsent) {
    spec.page_size = 0;
    spec.q_lens = {2, 2};
    spec.kv_lens = {30, 50};
    spec.options.causal = false;
    Problem p(spec, random);
    Plan plan(p.config, p.lengths());
    AttentionParams params = p.params();
    params.total_k = 30 + 20;
    const Answer got = p.attend(params, plan, 2, kStatusKeysPastEnd);
    ProblemSpec cut = spec;
    cut.kv_lens = {30, 20};
    Problem q(cut, random);
    q.q = p.q, q.k = p.k, q.v = p.v, q.out = p.out;
    q.expect_close(got, q.reference());

    params.total_k = 10;  // the second sequence begins past it
    Plan again(p.config, p.lengths());
    expect_rows(p, p.attend(params, again, 2, kStatusKeysPastEnd), 2, 4, kNothing);
}

TEST_F(AttentionRules, PagesOutOfRangeReadAsZeros) {
    Problem p(spec, random);
    const Problem::Slot lost = p.find_slot(1, 20);
    for (int32_t head = 0; head < 2; ++head)
        for (int32_t row = 0; row < 16; ++row)
            for (int32_t d = 0; d < 32; ++d) {
                p.k.set(lost.page, row, head, d, 0.0f);
                p.v.set(lost.page, row, head, d, 0.0f);
            }
    const Answer want = p.reference();
    for (int32_t wild : {-1, p.num_pages, INT32_MIN, INT32_MAX}) {
        p.block_table[p.table_stride + 1] = wild;
        p.expect_close(p.attend(2, kStatusPageId), want);
    }
}

TEST_F(AttentionRules, RowsPastTheEndOfQAreSkipped) {
    Problem p(spec, random);
    Plan plan(p.config, p.lengths());
    AttentionParams params = p.params();
    params.total_q = 50;
    Answer want = p.reference();
    const Answer got = p.attend(params, plan, 2, kStatusRowsPastEnd);
    for (size_t i = 0; i < got.out.size(); ++i)
        ASSERT_NEAR(got.out[i], want.out[i], 1e-4);
    EXPECT_EQ(got.out.size(), size_t{50} * 4 * 32);
}

TEST_F(AttentionRules, ForeignPlansAreRefusedAndNothingIsComputed) {
    spec.rows_after = 3;
    Problem p(spec, random);
    Plan plan(p.config, p.lengths());
    std::vector<char> workspace(workspace_size(p.config));
    AttentionParams params = p.params();
    params.plan = plan.data();
    params.workspace = workspace.data();
    plan.header().config.head_dim_v = 64;
    plan.header().config.num_splits = 3;
    test::expect_error(ErrorCode::kPlanMismatch, "mha_varlen: plan: head_dim_v: got 64; takes a plan made for 32",
                       [&] { mha_varlen_cpu(params); });
    const uint32_t bits = plan.header().status;
    EXPECT_EQ(bits, kStatusForeignPlan | 1u << (kStatusFirstField + 5) | 1u << (kStatusFirstField + 11));
    plan.header().magic = 0;
    test::expect_error(ErrorCode::kPlanMismatch, "mha_varlen: plan: got a buffer that holds no plan",
                       [&] { mha_varlen_cpu(params); });
    EXPECT_EQ(plan.header().status, bits | kStatusNotAPlan);
    for (float x : p.lse)
        EXPECT_EQ(x, Problem::kUntouched);
}

TEST_F(AttentionRules, ANaNInOneQueryStaysInItsRow) {
    Problem p(spec, random);
    const Answer clean = p.attend(1);
    p.q.set(0, 10, 1, 5, std::numeric_limits<float>::quiet_NaN());
    const Answer got = p.attend(1);
    for (size_t i = 0; i < got.out.size(); ++i) {
        if (i / 32 == 10 * 4 + 1)
            EXPECT_TRUE(std::isnan(got.out[i])) << i;
        else
            EXPECT_EQ(got.out[i], clean.out[i]) << i;
    }
}

TEST_F(AttentionRules, WithoutLseOnlyOutIsWritten) {
    Problem p(spec, random);
    Plan plan(p.config, p.lengths());
    AttentionParams params = p.params();
    params.lse = nullptr;
    const Answer got = p.attend(params, plan, 2, 0);
    const Answer want = p.reference();
    for (size_t i = 0; i < got.out.size(); ++i)
        ASSERT_NEAR(got.out[i], want.out[i], 1e-4);
    for (float x : p.lse)
        EXPECT_EQ(x, Problem::kUntouched);
}

// A sequence alone, and the same bytes among neighbours and cut into chunks: equal bits in invariant mode.
TEST_F(AttentionRules, BatchInvariantBitsDoNotDependOnNeighboursOrChunks) {
    for (int32_t group : {1, 3, 8}) {
        for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
            spec.options.batch_invariant = true;
            spec.options.num_heads_q = 2 * group;
            spec.options.dtype = dtype;
            spec.q_lens = {150};
            spec.kv_lens = {333};
            Problem alone(spec, random);
            const Answer whole = alone.attend(1);

            // Neighbours, then the sequence as two requests: its first 61 queries against 244 keys, and the other 89.
            ProblemSpec batch = spec;
            batch.q_lens = {7, 61, 30, 89};
            batch.kv_lens = {900, 244, 3, 333};
            Problem p(batch, random);
            const int32_t first_row[2] = {7, 98}, rows[2] = {61, 89}, seqs[2] = {1, 3};
            for (int part = 0; part < 2; ++part) {
                const int32_t skipped = part == 0 ? 0 : 61;
                for (int32_t h = 0; h < 2 * group; ++h)
                    for (int32_t t = 0; t < rows[part]; ++t)
                        for (int32_t d = 0; d < 32; ++d)
                            p.q.set(0, first_row[part] + t, h, d,
                                    static_cast<float>(alone.q.get(0, skipped + t, h, d)));
                for (int32_t key = 0; key < batch.kv_lens[seqs[part]]; ++key) {
                    const Problem::Slot from = alone.find_slot(0, key), to = p.find_slot(seqs[part], key);
                    for (int32_t h = 0; h < 2; ++h)
                        for (int32_t d = 0; d < 32; ++d) {
                            p.k.set(to.page, to.row, h, d, static_cast<float>(alone.k.get(from.page, from.row, h, d)));
                            p.v.set(to.page, to.row, h, d, static_cast<float>(alone.v.get(from.page, from.row, h, d)));
                        }
                }
            }
            const Answer got = p.attend(3);
            const int64_t width = int64_t{2} * group * 32;
            for (int part = 0; part < 2; ++part)
                for (int64_t i = 0; i < rows[part] * width; ++i)
                    ASSERT_EQ(got.out[first_row[part] * width + i], whole.out[(part == 0 ? 0 : 61) * width + i])
                        << "part " << part << ", element " << i;
        }
    }
}

}  // namespace
}  // namespace varattn
