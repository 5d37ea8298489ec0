// GELU(x) = x Phi(x), Phi the normal distribution: the form with erf that BERT was trained with, not the one with tanh.
#pragma once

#include "common/exponential.cuh"

namespace bert
{

// The larger of x and 0; NaN stays NaN, which fmaxf would drop.
inline __device__ float positivePart(float x)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    float result;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(x));
    return result;
#else
    return x < 0.0F ? 0.0F : x;
#endif
}

// GELU(x) = max(x, 0) - |x| Phi(-|x|), which subtracts nothing large from anything large, and Phi(-a) = 2^q(a) with a
// polynomial q: 10 instructions, no branch. The coefficients are a weighted least squares fit to log2(Phi(-a)) on
// [0, 5.75], repeated with more weight where the error was large until it was even (Lawson), the weight 1 as far as
// fp16 has all its bits and falling with a Phi(-a) beyond. In fp32, with them rounded to fp32, the relative error of
// Phi(-a) is at most 7e-6 up to 4.2; beyond, where fp16 has fewer bits, a Phi(-a) is off by at most 4e-10 (half the
// smallest fp16 is 3e-8). From kLARGEST on, where q would soon grow again, the product is less than 1e-30 for any x.
inline __device__ float gelu(float x)
{
    constexpr float kLARGEST = 13.0F;
    float const a = fminf(fabsf(x), kLARGEST);
    float q = 3.2444535e-05F;
    q = fmaf(q, a, -7.484182e-04F);
    q = fmaf(q, a, 7.942258e-03F);
    q = fmaf(q, a, -5.3051792e-02F);
    q = fmaf(q, a, -4.5917046e-01F);
    q = fmaf(q, a, -1.1510366F);
    q = fmaf(q, a, -1.0000076F);
    return fmaf(-a, exponential2(q), positivePart(x));
}

} // namespace bert
