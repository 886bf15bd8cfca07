// The table of the kernels under the name DGR_TABLE.
#include "absolute.h"
#include "adam.h"
#include "draw_vjp.h"
#include "median.h"
#include "project.h"
#include "sh.h"

namespace dgr {

extern const Kernels DGR_TABLE;
constexpr Kernels DGR_TABLE{
    {project_all<float>, project_vjp_all<float>, write_records<float>, list_tiles<float>, draw<float>, draw_vjp<float>, absolute_tile<float>, median_tile<float>, sum_pairs<float>,
     sh_all<float>, sh_vjp_all<float>, adam_all<float>},
    {project_all<double>, project_vjp_all<double>, write_records<double>, list_tiles<double>, draw<double>, draw_vjp<double>,
     absolute_tile<double>, median_tile<double>, sum_pairs<double>, sh_all<double>, sh_vjp_all<double>, adam_all<double>},
};

}  // namespace dgr
