"""An echo on KServe's ModelServer; runs in KServe's own environment. Argument: the port."""

import sys

from kserve import InferOutput, InferResponse, Model, ModelServer


class Echo(Model):
    def __init__(self):
        super().__init__("echo")
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        array = payload.inputs[0].as_numpy()
        output = InferOutput(name="output", shape=list(array.shape), datatype="FP32")
        output.set_data_from_numpy(array, binary_data=False)
        return InferResponse(response_id=payload.id or "1", model_name="echo", infer_outputs=[output])


if __name__ == "__main__":
    ModelServer(http_port=int(sys.argv[1]), enable_grpc=False, workers=1, access_log_format=None).start([Echo()])
