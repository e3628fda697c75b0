"""pyradiomics feature -> tag of the IBSI reference values (3D; GLCM and GLRLM averaged over the directions)."""

_FIRST_ORDER = {
    "10Percentile": "stat_p10", "90Percentile": "stat_p90", "Energy": "stat_energy", "Entropy": "ih_entropy",
    "InterquartileRange": "stat_iqr", "Kurtosis": "stat_kurt", "Maximum": "stat_max", "Mean": "stat_mean",
    "MeanAbsoluteDeviation": "stat_mad", "Median": "stat_median", "Minimum": "stat_min", "Range": "stat_range",
    "RobustMeanAbsoluteDeviation": "stat_rmad", "RootMeanSquared": "stat_rms", "Skewness": "stat_skew",
    "Uniformity": "ih_uniformity", "Variance": "stat_var",
}  # fmt: skip
_GLCM = {
    "Autocorrelation": "auto_corr", "ClusterProminence": "clust_prom", "ClusterShade": "clust_shade",
    "ClusterTendency": "clust_tend", "Contrast": "contrast", "Correlation": "corr", "DifferenceAverage": "diff_avg",
    "DifferenceEntropy": "diff_entr", "DifferenceVariance": "diff_var", "Id": "inv_diff", "Idm": "inv_diff_mom",
    "Idmn": "inv_diff_mom_norm", "Idn": "inv_diff_norm", "Imc1": "info_corr1", "Imc2": "info_corr2",
    "InverseVariance": "inv_var", "JointAverage": "joint_avg", "JointEnergy": "energy", "JointEntropy": "joint_entr",
    "MaximumProbability": "joint_max", "SumAverage": "sum_avg", "SumEntropy": "sum_entr", "SumSquares": "joint_var",
}  # fmt: skip
_GLRLM = {
    "GrayLevelNonUniformity": "glnu", "GrayLevelNonUniformityNormalized": "glnu_norm", "GrayLevelVariance": "gl_var",
    "HighGrayLevelRunEmphasis": "hgre", "LongRunEmphasis": "lre", "LongRunHighGrayLevelEmphasis": "lrhge",
    "LongRunLowGrayLevelEmphasis": "lrlge", "LowGrayLevelRunEmphasis": "lgre", "RunEntropy": "rl_entr",
    "RunLengthNonUniformity": "rlnu", "RunLengthNonUniformityNormalized": "rlnu_norm", "RunPercentage": "r_perc",
    "RunVariance": "rl_var", "ShortRunEmphasis": "sre", "ShortRunHighGrayLevelEmphasis": "srhge",
    "ShortRunLowGrayLevelEmphasis": "srlge",
}  # fmt: skip
_GLSZM = {
    "GrayLevelNonUniformity": "glnu", "GrayLevelNonUniformityNormalized": "glnu_norm", "GrayLevelVariance": "gl_var",
    "HighGrayLevelZoneEmphasis": "hgze", "LargeAreaEmphasis": "lze", "LargeAreaHighGrayLevelEmphasis": "lzhge",
    "LargeAreaLowGrayLevelEmphasis": "lzlge", "LowGrayLevelZoneEmphasis": "lgze", "SizeZoneNonUniformity": "zsnu",
    "SizeZoneNonUniformityNormalized": "zsnu_norm", "SmallAreaEmphasis": "sze",
    "SmallAreaHighGrayLevelEmphasis": "szhge", "SmallAreaLowGrayLevelEmphasis": "szlge", "ZoneEntropy": "zs_entr",
    "ZonePercentage": "z_perc", "ZoneVariance": "zs_var",
}  # fmt: skip
_GLDM = {
    "DependenceEntropy": "dc_entr", "DependenceNonUniformity": "dcnu", "DependenceNonUniformityNormalized": "dcnu_norm",
    "DependenceVariance": "dc_var", "GrayLevelNonUniformity": "glnu", "GrayLevelVariance": "gl_var",
    "HighGrayLevelEmphasis": "hgce", "LargeDependenceEmphasis": "hde", "LargeDependenceHighGrayLevelEmphasis": "hdhge",
    "LargeDependenceLowGrayLevelEmphasis": "hdlge", "LowGrayLevelEmphasis": "lgce", "SmallDependenceEmphasis": "lde",
    "SmallDependenceHighGrayLevelEmphasis": "ldhge", "SmallDependenceLowGrayLevelEmphasis": "ldlge",
}  # fmt: skip
_NGTDM = {name: name.lower() for name in ("Busyness", "Coarseness", "Complexity", "Contrast", "Strength")}

TAGS: dict[str, str] = {
    **{f"firstorder_{name}": tag for name, tag in _FIRST_ORDER.items()},
    **{f"glcm_{name}": f"cm_{tag}_3D_avg" for name, tag in _GLCM.items()},
    **{f"glrlm_{name}": f"rlm_{tag}_3D_avg" for name, tag in _GLRLM.items()},
    **{f"glszm_{name}": f"szm_{tag}_3D" for name, tag in _GLSZM.items()},
    **{f"gldm_{name}": f"ngl_{tag}_3D" for name, tag in _GLDM.items()},
    **{f"ngtdm_{name}": f"ngt_{tag}_3D" for name, tag in _NGTDM.items()},
}
