"""Texts in many languages, in which what is to be redacted is labelled, beside what looks like it.

Everything is made up. Keys are put together at run time, from an issuer's prefix and random
characters, so that nothing in this file looks like a secret.
"""

import random
import re
import string

_RANDOM = random.Random(20231120)
_LOWER, _UPPER, _DIGITS = string.ascii_lowercase, string.ascii_uppercase, string.digits
_ANY = _LOWER + _UPPER + _DIGITS
_HEX = "0123456789abcdef"


def _draw(alphabet, count):
    return "".join(_RANDOM.choices(alphabet, k=count))


# How the keys of issuers look, as the documentation of detect-secrets' plugins has it.
ISSUED = {
    "artifactory": lambda: "AK" + "C" + _draw(_ANY, 60),
    "artifactory_password": lambda: "AP" + "5" + _draw(_ANY, 24),
    "aws_id": lambda: "AK" + "IA" + _draw(_UPPER + _DIGITS, 16),
    "aws_session": lambda: "AS" + "IA" + _draw(_UPPER + _DIGITS, 16),
    "azure": lambda: "Account" + "Key=" + _draw(_ANY + "+/", 86) + "==",
    "discord": lambda: f"M{_draw(_ANY, 23)}.{_draw(_ANY, 6)}.{_draw(_ANY, 27)}",
    "github": lambda: "gh" + "p_" + _draw(_ANY, 36),
    "github_app": lambda: "gh" + "s_" + _draw(_ANY, 36),
    "gitlab": lambda: "gl" + "pat-" + _draw(_ANY, 20),
    "gitlab_runner": lambda: "GR" + "1348941" + _draw(_ANY, 20),
    "jwt": lambda: f"ey{'JhbGciOiJIUzI1NiJ9'}.ey{'JzdWIiOiIxIn0'}.{_draw(_ANY, 43)}",
    "mailchimp": lambda: _draw(_HEX, 32) + "-u" + "s17",
    "openai": lambda: "s" + "k-" + _draw(_ANY, 20) + "T3Bl" + "bkFJ" + _draw(_ANY, 20),
    "pypi": lambda: "py" + "pi-AgEIcHlwaS5vcmc" + _draw(_ANY + "-_", 80),
    "sendgrid": lambda: "S" + "G." + _draw(_ANY, 22) + "." + _draw(_ANY, 43),
    "slack": lambda: "xo" + f"xb-{_draw(_DIGITS, 12)}-{_draw(_DIGITS, 12)}-{_draw(_ANY, 24)}",
    "slack_hook": lambda: (
        f"https://hooks.slack.com/services/T{_draw(_ANY, 8)}/B{_draw(_ANY, 8)}/{_draw(_ANY, 24)}"
    ),
    "square": lambda: "sq" + "0csp-" + _draw(_ANY, 43),
    "stripe": lambda: "s" + "k_live_" + _draw(_ANY, 24),
    "telegram": lambda: _draw("123456789", 9) + ":A" + _draw(_ANY, 34),
    "twilio": lambda: "S" + "K" + _draw(_HEX, 32),
}

# Keys of issuers whose pattern includes the name before it.
NAMED = {
    "aws_secret_key = '%s'": lambda: _draw(_ANY + "/+", 40),
    "cloudant_password = '%s'": lambda: _draw(_HEX, 64),
    "https://someone:%s@someone.cloudant.com": lambda: _draw(_HEX, 64),
    "ibm_cloud_api_key: %s": lambda: _draw(_ANY + "-_", 44),
    "cos_hmac_secret_access_key=%s": lambda: _draw(_HEX, 48),
    "//registry.npmjs.org/:_authToken=%s": lambda: "np" + "m_" + _draw(_ANY, 36),
    "softlayer_api_key: '%s'": lambda: _draw(_LOWER + _DIGITS, 64),
}

# The secrets that the tests of detect-secrets plant, in the lines in which they stand there; what
# is in «» must be gone. Taken apart by "|", as a whole they would look like secrets here, too.
_HEADER = "ey|JhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
_CLAIMS = "ey|JzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2MjM5MDIyfQ"
PUBLISHED = [
    line.replace("|", "")
    for line in (
        *(
            f"{before}«AP|{kind}xxxxxxxxxx»"
            for before in ("jfrog ", "key=", ":_password=", "X: ")
            for kind in ("2", "3", "5", "6", "A", "B")
        ),
        *("«AK|Cxxxxxxxxxx»", " «AK|Cxxxxxxxxxx»", "=«AK|Cxxxxxxxxxx»", 'a-key:"«AK|Cxxxxxxxxxx»"'),
        "«AK|IAZZZZZZZZZZZZZZZZ»",
        "aws_access_key = '«AK|IAIOSFODNN7EXAMPLE»'",
        "aws_secret_access_key = '«wJalrXUtnFEMI|/K7MDENG/bPxRfiCYEXAMPLEKEY»'",
        "https://testy_-test:«" + "abcd1234" * 8 + "»@testy_-test.cloudant.com/_api/v2/",
        "https://testy_-test:«abcdefghijabcdefghijabcd»@testy_-test.cloudant.com",
        "cloudant_password='«" + "abcd1234" * 8 + "»'",
        'clou_pw = "«' + "abcd1234" * 8 + '»"',
        'cloudant_key = "«abcdefghijabcdefghijabcd»"',
        "«MTk4NjIyNDgzNDcxOTI1MjQ4.|Cl2FMQ.|ZnCjm1XVW7vRze4b7Cq4se7kKWs»",
        "«Nzk5MjgxNDk0NDc2NDU1OTg3.|YABS5g.|2lmzECVlZv3vv6miVnUaKPQi2wI»",
        "«MZ1yGvKTjE0rY0cV8i47CjAa.|uRHQPq.|Xb1Mk2nEhe-4iUcrGOuegj57zMC»",
        "«gh|p_wWPw5k4aXcaT4fNP0UcnZwJUVFk6LO0pINUx»",
        *("«gl|pat-hellOworld380_testin»", "«gl|dt-HwllOuhfw-wu0rlD_yep»"),
        "«gl|soat-PREfix_helloworld380_testin_pretty_long_token_long»",
        '"secret_access_key": "«' + "1234567890abcdef" * 3 + '»"',
        "ibm-cos_secret_key = «" + "1234567890abcdef" * 3 + "»",
        f"«{_HEADER}.{_CLAIMS}.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c»",
        f"«{_HEADER}.{_CLAIMS}»",
        "«ey|J0eXAiOiJKV1QiLA0KImFsZyI6IkhTMjU2In0." + _CLAIMS + "»",
        *(f"«xo|x{kind}-523423-234243-234233-e039d02840a0b9379c»" for kind in "posr"),
        "«xo|xa-2-511111111-31111111111-3111111111111-e039d02840a0b9379c»",
        "«xo|xb-34532454-e039d02840a0b9379c»",
        "«https://hooks.sl|ack.com/services/Txxxxxxxx/Bxxxxxxxx/xxxxxxxxxxxxxxxxxxxxxxxx»",
        '--softlayer-api-key "«' + "abcd1234" * 8 + '»"',
        "http://api.softlayer.com/soap/v3.1/«" + "abcd1234" * 8 + "»",
        'sl_api_key := "«' + "abcd1234" * 8 + '»"',
        "//registry.npmjs.org/:_authToken=«743b294a-cd03-11ec-9d64-0242ac120002»",
        "//registry.npmjs.org/:_authToken=«np|m_xxxxxxxxxxx»",
        "base64_secret = '«c2VjcmV0IG1lc3NhZ2Ugc28geW91J2xsIG5ldmVyIGd1ZXNzIG15IHBhc3N3b3Jk»'",
        "hex_secret = '«8b1118b376c313ed420e5133ba91307817ed52c2»'",
        'SECRET = "«c3VwZXIgbG9uZyBzdHJpbmcgc2hvdWxkIGNhdXNlIGVub3VnaCBlbnRyb3B5»"',
        "VERY_SECRET_TOO = '«f6CGV4aMM9zedoh3OUNbSakBymo7yplB»'",
        "test_agent::allowlisted_api_key: '«ToCynx5Se4e2PtoZxEhW7lUJcOX15c54»'",
        "'«I6FwzQZFL9l-44nviI1F04OTmorMaVQf9GS4Oe07qxL_vNkW6CRas4Lo42vqJMT0M6riJfma_f-pTAuoX2U=»'",
        "'api_key': '«2b00042f7481c7b056c4b410d28f33cf»'",
    )
]

_RANDOM_KEYS = {
    "any16": lambda: _draw(_ANY, 16),
    "any24": lambda: _draw(_ANY, 24),
    "any32": lambda: _draw(_ANY, 32),
    "any40": lambda: _draw(_ANY, 40),
    "lower32": lambda: _draw(_LOWER + _DIGITS, 32),
    "hex32": lambda: _draw(_HEX, 32),
    "hex40": lambda: _draw(_HEX, 40),
    "hex64": lambda: _draw(_HEX, 64),
    "base64": lambda: _draw(_ANY + "+/", 43) + "=",
    "body": lambda: "\n".join(_draw(_ANY + "+/", 64) for _ in range(6)),
}

# In «» stands what is to be found, after its type; {} is a key; everything else is left alone.
_TEXTS = {
    "Python": '''"""Jo Doe <«E:jo.doe@corp-mail.com»>, and «E:r2d2+py@uni-bonn.de»."""
import re

@app.route("/users@latest")
def connect(host="«I:93.184.216.34»", fallback="127.0.0.1", dns="8.8.8.8"):
    api_key = "«K:{any32}»"
    token = '«K:{github}»'
    checksum = "{hex32}"
    return a@b.transpose(1, 0) + x @ y.T, "{hex40}"  # commit

EMAIL = re.compile(r"[^@]+@[^@]+\\.[a-z]+")
VERSION = "4.12.0.3"
CHARS = "abcdefghijklmnopqrstuvwxyz0123456789"
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
send_to("nobody@example.com", "user@localhost", cc=["«E:kim@startup.io»"])
''',
    "JavaScript": """// Maintainer: «E:li.wei@mail-box.cn»
import icon from './images/icon@2x.png';
import {{ thing }} from '@scope/package-name-that-is-long/dist/index.js';
const config = {{
  apiKey: "«K:{any40}»",
  authDomain: "project.firebaseapp.com",
  clientSecret: '«K:{lower32}»',
  integrity: "sha512-{base64}",
  slack: `«K:{slack}»`,
}};
const endpoints = ["http://«I:203.0.115.9»:8080/v1", "http://192.168.0.12", "http://0.0.0.0:3000"];
const veryLongIdentifierNameThatIsNoKey = 'some-css-class-name__element--modifier2';
""",
    "TypeScript": """export class Mailer {{
  constructor(private from = "«E:support@acme-tools.dev»", private sendgrid = "«K:{sendgrid}»") {{}}
  // See https://user:pass@intranet.acme-tools.dev/wiki, or git@github.com:acme/tools.git
  @Input() name: string;
  id = "3f2504e0-4f89-11d3-9a0c-0305e82c3301";
  address = "«I:2a02:2e0:3fe:1001:302:11ff:fe22:3344»"; local = "fe80::1ff:fe23:4567:890a";
}}
""",
    "Java": """/**
 * @author «E:hans.muster@firma.ch»
 * @see java.util.List#of
 */
@Component(value = "userService")
public class Config {{
    private static final String STRIPE = "«K:{stripe}»";
    private static final String AWS = "«K:{aws_id}»";
    private static final long serialVersionUID = 6529685098267757690L;
    static final String OID = "1.3.6.1.4.1.311.20.2.3", CN = "2.5.4.3";
    String server = "«I:45.33.32.156»", mask = "255.255.255.0";
    String className = "org.apache.commons.lang3.builder.ToStringBuilder2";
}}
""",
    "Kotlin": """val mail = "«E:ana_lopez@correo.es»"
list.forEach {{ if (it == 0) return@forEach }}
val key = "«K:{base64}»"
val resolver = listOf("1.1.1.1", "9.9.9.9")
""",
    "Go": """// Copyright 2021 The Authors, «E:dev-team@golang-shop.org»
package main
const (
	slackHook = "«K:{slack_hook}»"
	peer      = "«I:198.41.0.4»:443"
	local     = "10.1.2.3:80"
	digest    = "sha256:{hex64}"
)
require github.com/some/module v0.0.0-20210101000000-{hex40}
""",
    "Rust": """//! authors = ["Zoë Müller <«E:zoe.mueller@rust-haus.de»>"]
let x = f64::MAX + u8::from(1) as f64 + std::f32::consts::PI;
let secret = "«K:{any40}»";
let listen: SocketAddr = "[«I:2607:f8b0:4005:805::200e»]:443".parse()?;
let doc = "2001:db8::1"; let loopback = "::1";
#[cfg(feature = "serde_derive_internals_v1")]
""",
    "C": """/* Written by «E:torvald@kernel-fan.fi» */
#define SERVER_IP "«I:77.88.55.60»"
#define BUILD "10.0.19041.1"
static const char *token = "«K:{gitlab}»";
static const unsigned char md5_of_empty[] = "{hex32}";
static const char hexdigits[] = "0123456789abcdef";
""",
    "C++": """namespace a::b {{ auto v = std::chrono::system_clock::now(); }}
// mail: «E:bjarne99@cpp-forum.net»; version 2.14.0.1
const std::string apiToken("«K:{any32}»");
const auto addr = inet_addr("«I:151.101.1.69»");
""",
    "C#": """[assembly: AssemblyVersion("1.0.0.0")]
[assembly: AssemblyFileVersion("3.14.15.92")]
var conn = "Protocol=https;AccountName=x;«K:{azure}»;EndpointSuffix=core.windows.net";
var to = "«E:peter.parker@bugle.news»"; var cc = "user@example.org";
var guid = new Guid("6B29FC40-CA47-1067-B31D-00DD010662DA");
PublicKeyToken=b77a5c561934e089
""",
    "Ruby": """# Contact «E:yuki@matz-fans.jp»
Stripe.api_key = '«K:{stripe}»'
gem 'rails', '6.1.4.1'
@user.email = "«E:first.last@sub.domain.co.uk»"
secret_key_base: «K:{hex64}»
""",
    "PHP": """<?php
$config['mailchimp'] = '«K:{mailchimp}»';
$config['admin'] = '«E:webmaster@boutique.fr»';
$config['ip'] = '«I:5.9.164.112»';
$config['path'] = '/var/www/html/application/config/production2/settings.php';
""",
    "Shell": """#!/bin/bash
export AWS_ACCESS_KEY_ID=«K:{aws_id}»
export AWS_SECRET_ACCESS_KEY='«K:{any40}»'
export GITHUB_TOKEN=«K:{github}»
curl -H "Authorization: Bearer «K:{jwt}»" https://api.shop.example/v1
scp file.txt deploy@backup.example.com:/srv/
ssh root@«I:88.198.22.7»
ping -c 1 8.8.4.4
git config user.email "«E:ops@rack-space.net»"
echo "{hex64}  archive-1.2.3.4.tar.gz" | sha256sum -c
""",
    "YAML": """maintainer: Ada L. <«E:ada@engine-works.uk»>
image: registry/app@sha256:{hex64}
env:
  API_TOKEN: «K:{any32}»
  secret: "«K:{any24}»"
  DATABASE_HOST: «I:52.95.110.1»
  POD_CIDR: 10.244.0.0/16
  tokenizer: some-tokenizer-name-v2-large
""",
    "JSON": """{{"author": "«E:max@muster-mann.at»",
 "version": "7.0.12.4",
 "access_token": "«K:{any40}»",
 "password_hash": "{hex64}",
 "etag": "{hex32}",
 "resolved": "https://registry.yarnpkg.com/x/-/x-1.0.0.tgz#{hex40}",
 "host": "«I:104.16.132.229»",
 "private_key": "-----BEGIN PRIVATE KEY-----\\n«K:{base64}\\n{any32}»\\n-----END PRIVATE KEY-----"}}
""",
    "INI": """[smtp]
user = «E:noreply@our-shop.com»
host = «I:17.253.144.10»
apikey = «K:{any24}»
[bot]
telegram = «K:{telegram}»
discord = «K:{discord}»
""",
    "Dotenv": """SECRET_KEY=«K:{any40}»
TWILIO_SID=«K:{twilio}»
OPENAI=«K:{openai}»
AUTH_TOKEN=changeme
API_KEY=your-api-key-goes-right-here
KEY_PATH=/etc/ssl/private/server_key_2048.pem
PYPI=«K:{pypi}»
""",
    "TOML": """[package]
authors = ["Sam One <«E:sam@one-two.ca»>", "Someone <someone@users.example>"]
[registry]
token = "«K:{any32}»"
checksum = "{hex64}"
""",
    "XML": """<developer><email>«E:maven.dev@apache-fan.org»</email></developer>
<add key="ApiSecret" value="«K:{any32}»" />
<dependency version="2.3.1.0" publicKeyToken="31bf3856ad364e35"/>
<endpoint address="net.tcp://«I:64.233.160.1»:808/"/>
""",
    "SQL": """INSERT INTO users VALUES (1, '«E:bob@bobs-burgers.biz»', '«I:66.249.66.1»');
INSERT INTO hosts VALUES ('172.16.0.9', '«I:185.199.108.153»');
-- md5: '{hex32}'
""",
    "Terraform": """provider "aws" {{
  access_key = "«K:{aws_id}»"
  secret_key = "«K:{any40}»"
}}
ingress {{ cidr_blocks = ["«I:81.2.69.142»/32", "0.0.0.0/0", "10.0.0.0/8"] }}
""",
    "Dockerfile": """LABEL maintainer="«E:docker@ship-it.systems»"
ENV SQUARE_TOKEN=«K:{square}»
RUN pip install package==1.2.3.4 && echo "{hex40}" > revision
""",
    "Markdown": """Write to [us](mailto:«E:hello@readme-co.com») or «E:team@readme-co.com».
Use `ghp_` tokens, which begin like `AKIA` or `xoxb-`. Set `api_key="YOUR_API_KEY_GOES_HERE"`.
Our server is «I:172.67.181.22»; ping 1.2.3.4. See chapter 4.10.22.7.
Follow @someone and @someone_else, or pip install git+https://git@github.com/x/y.git@v1.2.3.
""",
    "HTML": """<a href="mailto:«E:info@web-agentur.de»?subject=Hi">«E:info@web-agentur.de»</a>
<script src="https://cdn.example.com/x.js" integrity="sha384-{base64}"></script>
<meta name="google-site-verification" content="x">
<img src="photo@3x.jpg">
""",
    "R": """# Author: «E:hadley@stat-lab.nz»
obj@slot.name <- 3; df@data$x
token <- "«K:{any40}»"
""",
    "Perl": """our @list = qw(a b); my %h = (mail => '«E:larry@wall-paper.org»');
use Foo::Bar 1.2.3.4; $DB::single = 1;
""",
    "Lua": """local host, key = "«I:129.134.30.12»", "«K:{base64}»"
-- bug reports: «E:lua_list@scripts.com.br»
""",
    "Swift": """@available(iOS 13.0, *) @objc func f() {{}}
let appToken = "«K:{any32}»"
let support = "«E:ios.support@app-lab.co»"
""",
    "Makefile": """SERVER ?= deploy@build.internal.test
HOST := «I:139.178.84.217»
PUBLISH_TOKEN := «K:{artifactory}»
all: ; @echo done
""",
    "PEM": """-----BEGIN RSA PRIVATE KEY-----
«K:{body}»
-----END RSA PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
{body}
-----END CERTIFICATE-----
if "-----BEGIN RSA PRIVATE KEY-----" in text or "-----END RSA PRIVATE KEY-----" in text:
""",
    "Commit": """commit {hex40}
Author: Nia Okoro <«E:nia.okoro@lagos-tech.ng»>
Signed-off-by: Ivan Petrov <«E:i.petrov@почта-сервис.ru»>
Reviewed-by: José <«E:josé@españa-código.es»>
index 83db48f..bf269f4 100644
""",
    "Log": """Jan 01 00:00:01 sshd: Failed password for root from «I:218.92.0.158» port 22
«I:40.77.167.12» - - "GET / HTTP/1.1" "Mozilla/5.0 Chrome/91.0.4472.124 Safari/537.36"
00:1A:2B:3C:4D:5E 12:30:45.123 dst=224.0.0.251 range «I:31.13.24.1»-«I:31.13.24.9»
client «I:2400:cb00:2048:1::c629:d7a2» fe80::1%eth0 a2:b3:c4:d5
""",
    "Scala": """libraryDependencies += "org.typelevel" %% "cats-core" % "2.9.0.1"
val owner = "«E:odersky.fan@scala-shop.ch»"; val node = "«I:203.0.112.77»:9042"
val apiSecret = "«K:{any32}»"
""",
    "Haskell": """-- Maintainer : «E:spj@lazy-eval.ac.uk»
f xs@(x:_) = x; ys@rest = Map.empty
sessionKey = "«K:{hex32}»"
""",
    "Elixir": """config :app, Endpoint, secret_key_base: "«K:{base64}»",
  from: "«E:jose@phoenix-fan.com.br»"
@doc false
@spec start(any) :: :ok
""",
    "PowerShell": """$cred = "«K:{any40}»"
Send-MailMessage -To «E:it-desk@kontoso.eu» -SmtpServer «I:20.54.89.106»
[Parameter(Mandatory=$true)] $x = @{{ Name = "a" }}
""",
    "CSV": """id,name,mail,ip
1,Ann,«E:ann@an-isp.net»,«I:24.48.0.1»
2,Bob,«E:bob+list@an-isp.net»,10.9.8.7
3,Cem,cem@example.net,«I:110.174.165.78»
""",
    "Hard": """Names like jane at corp dot com are not seen. «E:"odd name"@quoted-mail.com»
aws_session_token = '«K:{any40}»' -- «E:s.o@mail.sub-domain.com.au»
postgres://db.example.com/x?ssl=1 @ «I:51.15.0.8»
x = "«K:{any16}»"
y = "«K:{lower32}»"
z = "«K:{any24}»"
aws = «K:{aws_session}»; gitlab: «K:{gitlab_runner}», app: «K:{github_app}»
jwt "«K:{jwt}»" pass "«K:{artifactory_password}»"
host «I:100.20.30.40» dns «I:9.9.9.8» v1.4.5.20 1.2.3.4.5
""",
}
_TYPES = {"E": "EMAIL", "I": "IP_ADDRESS", "K": "KEY"}


def _labelled(template):
    """A text, and its labels as (start, stop, type)."""
    makers = {**ISSUED, **_RANDOM_KEYS}
    template = re.sub(r"\{(\w+)\}", lambda match: makers[match.group(1)](), template)
    template = template.replace("{{", "{").replace("}}", "}")
    text, labels = "", []
    for part in re.split(r"(«.*?»)", template, flags=re.DOTALL):
        if part.startswith("«"):
            labels.append((len(text), len(text) + len(part) - 4, _TYPES[part[1]]))
            part = part[3:-1]
        text += part
    return text, labels


_TEXTS["Issuers"] = "".join(f'value_{name} = "«K:{{{name}}}»"\n' for name in ISSUED)


LABELS = {language: _labelled(template) for language, template in _TEXTS.items()}
