/* One layer's heads and where their KV lies: engine.ops.cpu.ops fills it, once for each layer. */
#ifndef BATON_HEADS_H
#define BATON_HEADS_H
#include "vec.h"

#define MAX_HEAD_DIM 512

struct heads { /* block_stride in elements; norms and sinks may be null */
    void *layer_pool;
    int64_t block_stride, block_tokens, num_heads, num_kv_heads, head_dim;
    int64_t window; /* 0: everything is seen */
    const float *q_norm, *k_norm, *sinks;
    int64_t whole_q, whole_k; /* the norm is over all heads as one row */
    int64_t centred; /* it is a layer norm of each head alone, with weights of its own */
    float scale, softcap, norm_eps; /* softcap 0: none */
};

#endif
