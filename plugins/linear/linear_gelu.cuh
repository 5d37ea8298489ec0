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

// GELU(x) * factor for a result in 8 bits, where q of degree 3 will do: the relative error of Phi(-a) is at most 5e-3 up
// to 4.5, where half a step of E4M3 is 3e-2; beyond, a Phi(-a) is off by at most 1e-7. The error of GELU(x) is at most
// 8e-4. q falls for ever, so that no bound is needed, but x must be finite. With fewer instructions the largest products
// are 10 % faster, although their tensor cores are at work meanwhile: what all have to share is the board's power.
inline __device__ float quantizedGelu(float x, float factor)
{
    float const a = fabsf(x);
    float q = -0.01443057F;
    q = fmaf(q, a, -0.5405752F);
    q = fmaf(q, a, -1.0900861F);
    q = fmaf(q, a, -1.0073315F);
    return fmaf(-a * factor, exponential2(q), positivePart(x * factor));
}

} // namespace bert
