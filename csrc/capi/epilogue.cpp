#include "epilogue.h"

namespace qk::capi {
namespace {

int32_t check_bias(const qk_epilogue& q, const EpilogueOf& of, Epilogue& e, const Say& say) {
  if (q.bias && q.bias_row && (of.one_row || !strides_fit(of.m, q.bias_row, of.n, 1)))
    return say(QK_BAD_ARGUMENT, "qk_epilogue.bias_row is %lld, wanted %s", (long long)q.bias_row,
               of.one_row ? "0: one row for all" : "a smaller one");
  e.bias = q.bias, e.bias_row = q.bias ? q.bias_row : 0;
  return QK_OK;
}

int32_t read_codes(const qk_epilogue& q, const EpilogueOf& of, Epilogue& e, const Say& say) {
  const Limits type = limits_of(q.type);
  if (q.rounding < QK_HALF_EVEN || q.rounding > QK_HALF_AWAY)
    return say(QK_BAD_ARGUMENT, "qk_epilogue.rounding is %d, which is none", q.rounding);
  if (q.low < type.low || q.high > type.high || q.low > q.high || q.zero < type.low || q.zero > type.high)
    return say(QK_BAD_ARGUMENT, "qk_epilogue has low %d, high %d, zero %d, wanted codes of %d … %d", q.low, q.high,
               q.zero, type.low, type.high);
  if (q.m_row && (of.one_row || !strides_fit(of.m, q.m_row, of.n, 1)))
    return say(QK_BAD_ARGUMENT, "qk_epilogue.m_row is %lld, wanted %s", (long long)q.m_row,
               of.one_row ? "0: one row for all" : "a smaller one");
  e.rounding = Rounding(q.rounding);
  e.zero = q.zero, e.low = q.low, e.high = q.high, e.m_row = q.m_row;
  if (of.query) return QK_OK;
  const bool real = e.rounding == kHalfEven, wide = e.rounding == kHalfAway;
  if (real && !q.m) return say(QK_NULL_POINTER, "qk_epilogue.m is NULL");
  if (wide && !q.m64) return say(QK_NULL_POINTER, "qk_epilogue.m64 is NULL");
  if (!real && !wide && !(q.q && q.e)) return say(QK_NULL_POINTER, "qk_epilogue.%s is NULL", q.q ? "e" : "q");
  if (real) e.m = q.m;
  else if (wide) e.m64 = q.m64;
  else {
    e.q = q.q, e.e = q.e;
    for (idx i = 0; i < (q.m_row ? of.m : 1); ++i)
      for (idx j = 0; j < of.n; ++j) {
        const int32_t power = q.e[i * q.m_row + j];
        if (power < -31 || power > 30)
          return say(QK_BAD_ARGUMENT, "qk_epilogue.e has %d at (%lld, %lld), wanted −31 … 30", power, (long long)i,
                     (long long)j);
        e.left = e.left || power > 0;
      }
  }
  return QK_OK;
}

int32_t read_real(const qk_epilogue& q, const EpilogueOf& of, Epilogue& e, const Say& say) {
  if (q.curve < QK_NO_CURVE || q.curve > QK_TANH)
    return say(QK_BAD_ARGUMENT, "qk_epilogue.curve is %d, which is none", q.curve);
  if (q.a_scale_step != 0 && q.a_scale_step != 1)
    return say(QK_BAD_ARGUMENT, "qk_epilogue.a_scale_step is %lld, wanted 0 or 1", (long long)q.a_scale_step);
  if (of.one_row && q.a_scale_step) return say(QK_BAD_ARGUMENT, "qk_epilogue.a_scale_step is 1, wanted 0: one scale");
  if (q.clamps && !(q.clamp_low <= q.clamp_high))
    return say(QK_BAD_ARGUMENT, "qk_epilogue.clamp_low is %g, clamp_high %g", double(q.clamp_low),
               double(q.clamp_high));
  e.curve = Curve(q.curve);
  e.clamps = q.clamps != 0, e.clamp_low = q.clamp_low, e.clamp_high = q.clamp_high;
  e.w_scale = q.w_scale, e.float_bias = q.float_bias;
  e.float_sums = of.float_sums;
  if (!of.query && !of.float_sums && !q.w_scale) return say(QK_NULL_POINTER, "qk_epilogue.w_scale is NULL");
  if (of.of_floats) return QK_OK;
  if (!of.query && !q.a_scale) return say(QK_NULL_POINTER, "qk_epilogue.a_scale is NULL");
  e.a_scale = q.a_scale, e.a_scale_step = q.a_scale_step;
  return QK_OK;
}

int32_t read_residual(const qk_epilogue& q, const EpilogueOf& of, Epilogue& e, const Say& say) {
  const bool codes = q.residual_type == QK_S8 || q.residual_type == QK_U8;
  if (q.residual_type == QK_NO_RESIDUAL) return QK_OK;
  if (!codes && q.residual_type != QK_F32)
    return say(QK_BAD_ARGUMENT, "qk_epilogue.residual_type is %d, wanted QK_NO_RESIDUAL, QK_F32, QK_S8 or QK_U8",
               q.residual_type);
  if (q.type >= QK_S8 && q.rounding != QK_HALF_EVEN)
    return say(QK_BAD_ARGUMENT, "qk_epilogue: rounding %d knows no residual, wanted QK_HALF_EVEN", q.rounding);
  if (codes && (q.residual_zero < -128 || q.residual_zero > 255))
    return say(QK_BAD_ARGUMENT, "qk_epilogue.residual_zero is %d, which is no code", q.residual_zero);
  const idx row = q.residual_row ? q.residual_row : of.n;
  if (!strides_fit(of.m, row, of.n, 1)) return say(QK_BAD_ARGUMENT, "qk_epilogue.residual_row is too large");
  if (!of.query && !q.residual) return say(QK_NULL_POINTER, "qk_epilogue.residual is NULL");
  e.residual_type = !codes ? Residual::f32 : q.residual_type == QK_S8 ? Residual::s8 : Residual::u8;
  e.residual = q.residual, e.residual_row = row;
  e.residual_scale = q.residual_scale, e.residual_zero = q.residual_zero;
  return QK_OK;
}

}  // namespace

int32_t read_epilogue(const qk_epilogue* given, const EpilogueOf& of, Epilogue& e, const Say& say) {
  qk_epilogue q;
  if (const int32_t status = read_struct(given, q, "qk_epilogue", say)) return status;
  if (q.type < QK_S32 || q.type > QK_U16) return say(QK_BAD_ARGUMENT, "qk_epilogue.type is %d, which is none", q.type);
  if ((of.of_floats || of.float_sums) && (q.type == QK_S32 || q.type >= QK_S8))
    return say(QK_BAD_ARGUMENT, "qk_epilogue.type is %d, wanted QK_F32, QK_F16 or QK_BF16: %s real numbers", q.type,
               of.of_floats ? "a is of" : "groups give");
  if (of.float_sums && q.bias)
    return say(QK_BAD_ARGUMENT, "qk_epilogue.bias is given, wanted float_bias: groups give real numbers");
  e = {};
  e.type = Written(q.type);
  e.out = q.out, e.out_row = q.out_row ? q.out_row : of.n;
  if (!of.query && !q.out) return say(QK_NULL_POINTER, "qk_epilogue.out is NULL");
  const idx least = of.n;
  if (e.out_row < least || !strides_fit(of.m, e.out_row, of.n, 1))
    return say(QK_BAD_ARGUMENT, "qk_epilogue.out_row is %lld, wanted 0, or at least %lld", (long long)q.out_row,
               (long long)least);
  if (const int32_t status = check_bias(q, of, e, say)) return status;
  if (q.type == QK_S32) return QK_OK;
  const int32_t status = q.type >= QK_S8 ? read_codes(q, of, e, say) : read_real(q, of, e, say);
  return status ? status : read_residual(q, of, e, say);
}

bool spread_zero(Epilogue& e, idx n) {
  if (e.type < Written::s8 || e.rounding == kHalfEven || !e.zero) return true;
  int32_t* const room = static_cast<int32_t*>(thread_scratch(kEpilogueScratch, spread_bytes(n)));
  if (!room) return false;
  for (idx j = 0; j < n; ++j) room[j] = e.zero;
  e.zeros = room;
  return true;
}

}  // namespace qk::capi
