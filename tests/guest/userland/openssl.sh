# Digests and ciphers over known data; signatures and a TLS session made and checked.
mkdir -p /tmp/openssl && cd /tmp/openssl || exit 1
for i in {1..40}; do seq 1 $((i * 97)); done >data
for digest in $(openssl list -digest-commands); do
    echo "$digest $(openssl dgst -"$digest" data 2>&1 | sed 's/.*= //' | head -n 1)"
done
for cipher in aes-{128,192,256}-{cbc,ctr,ecb,ofb,cfb} camellia-256-cbc aria-256-cbc chacha20 sm4-cbc des-ede3-cbc; do
    openssl enc -"$cipher" -pbkdf2 -iter 1000 -S 0011223344556677 -pass pass:guest -in data -out sealed 2>/dev/null
    openssl enc -d -"$cipher" -pbkdf2 -iter 1000 -S 0011223344556677 -pass pass:guest -in sealed 2>/dev/null | cmp - data &&
        echo "$cipher $(sha256sum <sealed)"
done
openssl prime 170141183460469231731687303715884105727
openssl mac -macopt key:0123456789abcdef -macopt digest:SHA256 -in data HMAC
openssl kdf -keylen 32 -kdfopt pass:guest -kdfopt salt:pepper -kdfopt n:1024 -kdfopt r:8 -kdfopt p:1 SCRYPT
for algorithm in "RSA -pkeyopt rsa_keygen_bits:2048" "EC -pkeyopt ec_paramgen_curve:P-256" "EC -pkeyopt ec_paramgen_curve:secp384r1"; do
    openssl genpkey -quiet -algorithm $algorithm -out key.pem 2>/dev/null || openssl genpkey -algorithm $algorithm -out key.pem 2>/dev/null
    openssl pkey -in key.pem -pubout -out public.pem
    openssl dgst -sha256 -sign key.pem -out signature data && openssl dgst -sha256 -verify public.pem -signature signature data
    echo changed | openssl dgst -sha256 -verify public.pem -signature signature 2>/dev/null
done
openssl genpkey -algorithm ed25519 -out ed.pem && openssl pkey -in ed.pem -pubout -out ed.pub
openssl pkeyutl -sign -inkey ed.pem -rawin -in data -out signature
openssl pkeyutl -verify -pubin -inkey ed.pub -rawin -in data -sigfile signature
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout server.key -out server.crt -subj /CN=guest -days 2 \
    -config <(printf '[req]\ndistinguished_name=d\n[d]\n') 2>/dev/null
openssl s_server -quiet -accept 127.0.0.1:4433 -key server.key -cert server.crt -WWW >/dev/null 2>&1 &
server=$!
for i in {1..50}; do
    (exec 3<>/dev/tcp/127.0.0.1/4433) 2>/dev/null && break
    sleep 0.1
done
printf 'GET /data HTTP/1.0\r\n\r\n' | openssl s_client -quiet -connect 127.0.0.1:4433 -CAfile server.crt 2>/dev/null | tail -n +4 | sha256sum
for suite in TLS_AES_128_GCM_SHA256 TLS_CHACHA20_POLY1305_SHA256; do
    openssl s_client -connect 127.0.0.1:4433 -CAfile server.crt -ciphersuites $suite </dev/null 2>/dev/null |
        sed -n 's/^ *\(New.*\|Verify return code.*\)/\1/p' | sort -u # a session ticket may say it again
done
kill $server
