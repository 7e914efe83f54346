static void DSG_NAME(test_sum_of_squares)(void)
{
    enum { MOST = 67 };
    uint64_t seed = 1;
    dsg_real x[MOST];
    for (size_t i = 0; i < MOST; i++)
        x[i] = (dsg_real)utest_random(&seed);
    const double scales[] = {1.0, 0.25, 3.7, 0.0};
    for (size_t n = 0; n <= MOST; n++)
        for (size_t k = 0; k < sizeof scales / sizeof *scales; k++) {
            double want = 0.0;
            for (size_t i = 0; i < n; i++)
                want += (scales[k] * x[i]) * (scales[k] * x[i]);
            /* positive terms: a rounding for each of them, and two in its square */
            double tolerance = (double)(n + 2) * DBL_EPSILON * want;
            CHECK_NEAR(DSG_NAME(dsg_sum_of_squares)(x, n, scales[k]), want, tolerance);
        }
    x[MOST - 1] = (dsg_real)NAN;
    CHECK(isnan(DSG_NAME(dsg_sum_of_squares)(x, MOST, 1.0)));
}
