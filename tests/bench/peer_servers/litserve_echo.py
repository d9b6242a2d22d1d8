"""An echo on LitServe; runs in LitServe's own environment. Argument: the port."""

import sys

import litserve
import numpy as np


class Echo(litserve.LitAPI):
    def setup(self, device):
        pass

    def decode_request(self, request):
        tensor = request["inputs"][0]
        return np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])

    def predict(self, x):
        return x

    def encode_response(self, output):
        data = output.reshape(-1).tolist()
        return {"outputs": [{"name": "output", "shape": output.shape, "datatype": "FP32", "data": data}]}


if __name__ == "__main__":
    server = litserve.LitServer(Echo(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
