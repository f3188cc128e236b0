/* The same as main.cpp, in C99. */
#include <varattn/varattn.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(varattn_error_code code) {
    if (code == VARATTN_OK) return;
    fprintf(stderr, "%s\n", varattn_last_error());
    exit(1);
}

int main(void) {
    varattn_device device = varattn_cpu_device();
    varattn_plan_options options = varattn_default_options();
    varattn_plan_config config;
    varattn_attention_params params;
    varattn_lengths lengths;
    int64_t plan_bytes, workspace_bytes;
    const int32_t cu_seqlens_q[2] = {0, 1}, seqused_k[1] = {2}, block_table[2] = {1, 0}; /* pages of one key */
    float q[8] = {0}, k[16] = {0}, v[16], out[8], lse[1];
    void *plan, *workspace;
    int d, right;

    options.num_heads_q = options.num_heads_kv = 1;
    options.head_dim = 8;
    options.dtype = VARATTN_FLOAT32;
    options.max_seqs = options.max_total_q = 1;
    check(varattn_make_plan_config(&device, &options, &config));
    check(varattn_plan_size(&config, &plan_bytes));
    check(varattn_workspace_size(&config, &workspace_bytes));
    plan = malloc((size_t)plan_bytes);
    workspace = calloc(1, (size_t)workspace_bytes);

    memset(&lengths, 0, sizeof lengths);
    lengths.cu_seqlens_q = cu_seqlens_q;
    lengths.seqused_k = seqused_k;
    check(varattn_make_plan_cpu(&config, &lengths, plan));

    for (d = 0; d < 16; ++d)
        v[d] = d < 8 ? 1.0f : 3.0f;
    memset(&params, 0, sizeof params);
    params.config = config;
    params.q = q;
    params.k = k;
    params.v = v;
    params.out = out;
    params.lse = lse;
    params.block_table = block_table;
    params.k_page_stride = params.v_page_stride = 8;
    params.block_table_stride = 2;
    params.total_q = 1;
    params.num_pages = 2;
    params.page_size = 1;
    params.max_pages_per_seq = 2;
    params.softmax_scale = 1.0f;
    params.plan = plan;
    params.workspace = workspace;
    check(varattn_mha_varlen_cpu(&params, 0));
    free(plan);
    free(workspace);

    right = fabs(out[0] - 2.0) < 1e-5 && fabs(lse[0] - log(2.0)) < 1e-5;
    printf("varattn %s: out %g, lse %g: %s\n", varattn_version(), out[0], lse[0], right ? "right" : "WRONG");
    return right ? 0 : 1;
}
