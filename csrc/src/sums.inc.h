/* Sums for one precision. */

DSG_CLONES double DSG_NAME(dsg_sum_of_squares)(const dsg_real *restrict x, size_t n,
                                               double scale)
{
    double lane[16] = {0}, sum = 0.0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t l = 0; l < 16; l++) {
            double v = scale * x[i + l];
            lane[l] += v * v;
        }
    for (size_t l = 0; i < n; i++, l++) {
        double v = scale * x[i];
        lane[l] += v * v;
    }
    for (size_t l = 0; l < 16; l++)
        sum += lane[l];
    return sum;
}
