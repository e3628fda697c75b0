"""One compressed image for each transfer syntax, for the decode self-test at start: a ramp, 16 x 16 pixels.

Pixel (row, column) is 16 * row + column, times 16 where the sample has more than 8 bits. The codestreams are base85.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A compressed ramp: its codestream, the bits stored, and the largest error that a right decoder leaves."""

    codestream_base85: str
    bits_stored: int
    tolerance: int = 0


SAMPLES: dict[str, EncodedSample] = {
    # JPEG baseline, 8 bits, made with dcmcjpeg
    "1.2.840.10008.1.2.4.50": EncodedSample(
        "|JeWF01!$>Nk#wx0RR9200961|JwjV00IF40RaI50RaI50s;a81OoyB0s;jD1Oo&H1qKEN1qKEN2MGuU2MGrT1_%oX2?`1d3JL}Y"
        "3k(Yi3<(Mf3je?W3kU!Z01yEI5di<h02KfM0RR910000000000000063ID_Z84v&g1poj50000000000000052_-S3|Jncu0RaF2"
        "KLDMnt+!Aa2oqawpfWE4Yi-m9LIl>^s0@$)|Je",
        bits_stored=8,
        tolerance=4,
    ),
    # JPEG extended, made with dcmcjpeg
    "1.2.840.10008.1.2.4.51": EncodedSample(
        "|JeWF01!$>Nk#wx0RR9200961|JwjV00IF40RaI50RaI50s;a81OoyB0s;jD1Oo&H1qKEN1qKEN2MGuU2MGrT1_%oX2?`1d3JL}Y"
        "3k(Yi3<(Mf3je_X3k(1d01yEI5di<h02KfM0RR9100000000000000A4gbUd8xQ~h2LS*80000000000000094JkB7Qse*H00;pA"
        "002J#oxWRXxX>71HMbyu3vD+V0}JN1<Szgg+HN!k7tL+RAOhP>#(={4t+@~X|Je",
        bits_stored=12,
        tolerance=4,
    ),
    # JPEG lossless, made with dcmcjpeg
    "1.2.840.10008.1.2.4.57": EncodedSample(
        "|JeWF01!$>Nk#wx0RR9200961|HA+a5C9MW5CH)Z0RO}Q7XSeP0RaF20000000000000OD2@wC<00;pA00sa6>J%tYp+bcU6ev)k"
        "LWY1K5C{YU0RVtNAP@)y0s#Pk&;$Yj0DwRs5C{YU0RVtNAP^b=fIuJ+2m}HF0DwRs5C{YU13(Z61Ofp7fIuJ+2m}HF0DwSf0s#Pk"
        "Kp+qZ1Ofp7fIuJ+2n_&0AP@)y0s#PkKp+qZ1Ofp8pa=v40RVtNAP@)y0s#PkKp->$0DwRs5C{YU0RVtNAP@)y27n+C2m}HF0DwRs"
        "5C{YU0RVu|1Ofp7fIuJ+2m}HF0DwRs5E=l0Kp+qZ1Ofp7fIuJ+2m}HHKoAH70s#PkKp+qZ1Ofp7fIw&h0RVtNAP@)y0s#PkKp+qZ"
        "4FEtO5C{YU0RVtNAP@)y0s#S_2m}HF0DwRs5C{YU0RVtNAV2@v",
        bits_stored=12,
    ),
    # JPEG lossless SV1, made with dcmcjpeg
    "1.2.840.10008.1.2.4.70": EncodedSample(
        "|JeWF01!$>Nk#wx0RR9200961|HA+a5C9MW5CH)Z0RO}Q761VO0RR910000000000000FE5dYc$2mt{A0RRBVAc6=Wf(Rgj2q1+3"
        "K?D#%1Q0<45J3be0tg_22q1z8Ac6=XKoCI$5J3bGK?D#%3IKu#Ac6=Wf(Rgj2v7tNK?D#%1Q0<45JG?;f(Rgj2q1z8Ac7PD1Q0<4"
        "5J3bGK?D$>2q1z8Ac6=Wf(Rgm06_#0K?D#%1Q0<4C;|u|f(Rgj2q1z8AwUp81Q0<45J3bGK?(qZ2q1z8Ac6=Wf(TFq5J3bGK?D#%"
        "1Q0@iAc6=Wf(Rgj2q1zK0R#|11Q0<45J3bG|Je",
        bits_stored=12,
    ),
    # JPEG-LS lossless, made with dcmcjpls
    "1.2.840.10008.1.2.4.80": EncodedSample(
        "|JeWc01FTR5C9MX0TBTI_y7$7|Nj6I07C&306_oR00;pA00000p!^?$@OB%6@OB%9V)0m<Mm{$HLI^z$Ls5vdQY9fB85tE72rvXh"
        "L_|br(W6F<5+q2FdjBFsi4r78ks(5gD58fy$fAlUqKYV@iYTInzo?>$D58oeqKYV>jDHY95QHHJLJ))^-?SkJLJ))@2tpB0(h!6p"
        "5fKp)5iiOjA|fIpA|gZZh=_=Yi6oKVbdpIVl1Ul%NhFd<B}RQ!RaI3L^i@?=R9DSk{|Nut",
        bits_stored=12,
    ),
    # JPEG-LS near-lossless, made with dcmcjpls
    "1.2.840.10008.1.2.4.81": EncodedSample(
        "|JeWc01FHN5C9MX0TBTI+5iXv0RRL50IuizbMLm`BQqw+qDoi-r72RSam4fIql5l`I{zQ%AOCZ2|7hd?esTYQHvfK{fBu_){+oaP"
        "oPYltfByjg*#H",
        bits_stored=12,
        tolerance=4,
    ),
    # JPEG 2000 lossless, made with OpenJPEG
    "1.2.840.10008.1.2.4.90": EncodedSample(
        "|4;u>04V?f0000G0000G00000000000000G0000G0000000000009dD0sm3}3;+NC0RRC61ONg5TmT0^U}$J?|6~9q00BdCWnpw>"
        "WFTUBAWv{*Zc0!^M<8}(a&u{KZXhx)H7+#&kN^q*00000UH}3Ali%R<5-S4>3lrqIFNHriP>UCJ?EdS!znKc-S4oO94|pUB;W`U7"
        "&<FVdY(<X`1X`d*QH|~i)4GRcRPUVqpTHkDNIx)8Hldl%J*G5Z&;Qu",
        bits_stored=12,
    ),
    # JPEG 2000, made with OpenJPEG
    "1.2.840.10008.1.2.4.91": EncodedSample(
        "|4;u>04V?f0000G0000G00000000000000G0000G0000000000009dD0sm3}4gmrH0RRC61ONbti2qyw3qoilchh&%cVho!03`qc"
        "Lvm$dbY)~9VtF7>aAj^vP(?=|c4cyNX>V>IGA=bPH2;tQ3IG5A003J60soWFu+R|PLOkYIL*u~7U>s2)m?6G)v@@m+uX0c9mac*G"
        "#j6a6J?JA3o96Uq$=xYgLwoZ9OU%Foa32`ZHlcn!rY&V*8G~)W?ZSWu|Je",
        bits_stored=12,
        tolerance=16,
    ),
    # HTJ2K lossless, made with OpenJPH
    "1.2.840.10008.1.2.4.201": EncodedSample(
        "|4;u>04YEK0000G0000G00000000000000G0000G0000000000009pH0sl|{2mk^A000U9QUDA90ssL30R#j<0smY82Ox-uh=~7W"
        "02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00000%K!oYlfVEkq`?1w|9gM`fA0T&|8{@=Kl^|GKmD)&SN_lcCx7F=(f?onPyapt"
        "JN|e78~-`~8UHu`7ymW?75_8;6Th+F$p2seSN}f$UH*IjE&n|KEdM+IEB`wGD*rkEDc`tn)c<FH<G<%W<G=I2_~-m9{x|;#{~G@Y"
        "{~7-W-<WU11J|$CU)QhJU)QhJT?hciLI5$f0l)w&AOIGS?(XjH=fJ0@r^0vu{{8*^{r&y@{fuCH_A!C%x&Z&#",
        bits_stored=16,
    ),
    # HTJ2K, made with OpenJPH
    "1.2.840.10008.1.2.4.203": EncodedSample(
        "|4;u>04YEK0000G0000G00000000000000G0000G0000000000009pH0sl|{2mk^A001igQUDA90ssL30R#j<0RLP73nGXlm(rKg"
        "mtp^802crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00000?EnG)lfVEkrGUZp>+YxO_qlJ=54d;HAGUwbC$xvnFS4J@N3e&<FRovm"
        "?|ol4-|!u0Ug<qwe&JnLp4oj*zR}%B9?G3RzQO%@9sE4zde!r-^|o`4b(eE*^>_16by)K-^*Qqo^%(O8a`Nxi<6FNq$K$@Y#$~=a"
        "#^=4e#c91k#qYek#A&<(*RR%J*RR%J*RR%HDFDVwKryuezyKDs00DHsb_P+;AnF-JJ%jpOmHd_bmHsP>djNjl_kG{@yLflu-NoC*"
        "yNkDrcNcFL?;k;o3UtOWDZ9z7a%w*S|Je",
        bits_stored=16,
        tolerance=4,
    ),
}
